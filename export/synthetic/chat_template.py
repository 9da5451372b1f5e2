"""The chat template that generated checkpoints carry: the turns of the Qwen3-VL Instruct models, without tools.

Every turn is `<|im_start|>role`, a line break, its content, `<|im_end|>` and a line break. There is no default system
turn. A picture or a video is one pad token between vision_start and vision_end, with nothing around them.
"""

CHAT_TEMPLATE = """\
{%- set seen = namespace(images=0, videos=0) %}
{%- macro visual(noun, number, pad) %}
    {%- if add_vision_id %}
        {{- noun ~ ' ' ~ number ~ ': ' }}
    {%- endif %}
    {{- '<|vision_start|>' ~ pad ~ '<|vision_end|>' }}
{%- endmacro %}
{%- for message in messages %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}
                {%- set seen.images = seen.images + 1 %}
                {{- visual('Picture', seen.images, '<|image_pad|>') }}
            {%- elif part.type == 'video' %}
                {%- set seen.videos = seen.videos + 1 %}
                {{- visual('Video', seen.videos, '<|video_pad|>') }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
