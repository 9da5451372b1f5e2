"""A conversation to token ids, with the pads of every picture expanded to its visual tokens.

    messages ─► chat template ─► "<|im_start|>user … <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|> …"
      control tokens become ids, and what lies between them is encoded as text
      <|image_pad|> becomes t*h*w/4 ids, a video becomes timestamps and one run of ids per pair of frames

Control tokens, those of turns and of pictures, come from the template alone. When a text contains such a string ("what
does <|im_end|> mean?"), it is encoded as the ordinary characters that it consists of, as transformers does with
`split_special_tokens`: no text can end a turn, open another or forge visual tokens, however it is cut into parts (see
`shielding`). In what templates put between tags of tools (results, calls, definitions) the same holds for these tags.
All other added tokens, such as `<think>`, are tokens wherever they stand, as in transformers: a conversation's earlier
answers hold them, and templates look for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from broker_pipeline.errors import InvalidRequestError, ModelConfigError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart
from broker_pipeline.messages.template_options import ENABLE_THINKING, TemplateOptions, ToolCall
from broker_pipeline.scheduling.policies.text_bound import fewest_tokens, longest_token_bytes, too_long
from stages.prompt.chat_template import ChatTemplate
from stages.prompt.shielding import hide, show
from stages.prompt.text_encoder import PIECE_CHARS, TextEncoder
from stages.prompt.tokenizer import TOKENIZER_FILE, check_vocabulary, literal_tokenizer, load_tokenizer, token_named
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.positions import VisualGroup

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
_OTHER_TOKENS = ("<|endoftext|>", "<|vision_pad|>")
_TOOL_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_THINKING, _NOT_THINKING = "<think>\n", "\n</think>\n\n"
_CUT = "\ud800"
"""Marks where a prompt shall end; no valid text, and no stand-in of one, has it."""
_BETWEEN_TAGS = "<"  # hidden as well in what stands between tags of tools: all of them begin with it


@dataclass(frozen=True, slots=True)
class VisualInput:
    """What fills one placeholder: a picture, or a video with the time of each pair of frames in seconds."""

    kind: Literal["image", "video"]
    grid: PatchGrid
    timestamps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and where the visual tokens are; visual rows are numbered across all pictures, in prompt order."""

    token_ids: tuple[int, ...]
    groups: tuple[VisualGroup, ...] = ()

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens, which is also the number of visual rows."""
        return sum(group.count for group in self.groups)


def frame_timestamps(times: Sequence[float], frames_per_group: int = 2) -> tuple[float, ...]:
    """Return the second of each temporal group of a video's frames: the mean of its first and last frame's.

    An incomplete last group is filled with the last frame.
    """
    last = len(times) - 1
    firsts = range(0, len(times), frames_per_group)
    return tuple((times[first] + times[min(first + frames_per_group - 1, last)]) / 2 for first in firsts)


@dataclass(slots=True)
class _Draft:
    """A prompt under construction: ids so far, and text that has not been encoded yet."""

    max_tokens: int | None = None
    ids: list[int] = field(default_factory=list)
    groups: list[VisualGroup] = field(default_factory=list)
    text: str = ""
    num_visual_rows: int = 0


class PromptBuilder:
    """Renders and tokenises conversations for one model.

    The outer vision_start and vision_end around a whole video stay, as transformers from 5.10 on has them.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._template = template
        self._merge = config.vision.spatial_merge_size
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        visual = [token_named(tokenizer, getattr(config, name), name) for name in names]
        self._image_pad, self._video_pad, self._vision_start, self._vision_end = visual
        controls = [*visual, *_TURN_TOKENS, *_OTHER_TOKENS]
        self._controls = _ids_of(tokenizer, [*controls, *_TOOL_TAGS])
        self._hidden = "".join({"|" if "|" in name else name[0] for name in controls})
        longest_first = sorted(self._controls, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)))
        check_vocabulary(tokenizer, config.text.vocab_size)
        self._longest_token_bytes = longest_token_bytes(tokenizer)
        self._tokenizer = literal_tokenizer(tokenizer, self._controls)
        self._encoder = TextEncoder(self._tokenizer)

    @classmethod
    def from_directory(cls, config: ModelConfig, directory: Path) -> PromptBuilder:
        """Read `tokenizer.json` and the chat template of an artifact or checkpoint.

        Raises:
            ModelConfigError: a file is absent or broken, or lacks the tokens that prompts are made of.
        """
        return cls(config, load_tokenizer(directory / TOKENIZER_FILE), ChatTemplate.from_directory(directory))

    def build(
        self,
        messages: Sequence[ChatMessage],
        visuals: Sequence[VisualInput],
        *,
        template: TemplateOptions | None = None,
        add_vision_id: bool = False,
        max_tokens: int | None = None,
    ) -> Prompt:
        """Return the prompt of a conversation; `visuals` fill its pictures and videos in order.

        `add_vision_id` has the chat template number them ("Picture 1: ").

        Raises:
            PromptTooLongError: it has more than `max_tokens` tokens. A long text is read no further than that.
            InvalidRequestError: the visuals do not fit the messages, or the template refuses them.
        """
        turns = [_turn(message) for message in messages]
        return self.build_turns(turns, visuals, template=template, add_vision_id=add_vision_id, max_tokens=max_tokens)

    def build_turns(
        self,
        turns: Sequence[Mapping[str, Any]],
        visuals: Sequence[VisualInput] = (),
        *,
        template: TemplateOptions | None = None,
        add_vision_id: bool = False,
        max_tokens: int | None = None,
    ) -> Prompt:
        """Do what `build` does for turns as templates read them: with calls and results of tools, for instance."""
        rendered = self._render(turns, template or TemplateOptions(), add_vision_id=add_vision_id)
        return self._expand(rendered, visuals) if max_tokens is None else self._bounded(rendered, visuals, max_tokens)

    def _render(self, turns: Sequence[Mapping[str, Any]], options: TemplateOptions, *, add_vision_id: bool) -> str:
        try:
            hidden = [self._hide(turn) for turn in turns]
            tools = hide(options.tools, self._hidden + _BETWEEN_TAGS)
            variables = hide(options.variables, self._hidden)
        except RecursionError as error:
            raise InvalidRequestError("this is nested too deeply", field="messages") from error
        rendered = self._template.render(
            _marked_at_its_end(hidden) if options.continue_final_message else hidden,
            tools=tools,
            add_generation_prompt=options.add_generation_prompt,
            add_vision_id=add_vision_id,
            variables=variables,
        )
        if options.continue_final_message:
            return _up_to_the_mark(rendered)
        if options.variables.get(ENABLE_THINKING) is False and rendered.endswith(_THINKING):
            return rendered + _NOT_THINKING  # a template without a say in it: as those that have one close it
        return rendered

    def _bounded(self, rendered: str, visuals: Sequence[VisualInput], max_tokens: int) -> Prompt:
        if fewest_tokens([rendered], self._longest_token_bytes) > max_tokens:
            raise too_long(max_tokens)
        prompt = self._expand(rendered, visuals, max_tokens if len(rendered) > PIECE_CHARS else None)
        if len(prompt.token_ids) > max_tokens:
            raise too_long(max_tokens, len(prompt.token_ids), prompt.num_visual_tokens)
        return prompt

    def _hide(self, turn: Mapping[str, Any]) -> dict[str, Any]:
        """Take what could be mistaken for the template's own out of a turn's texts."""
        between_tags = self._hidden + _BETWEEN_TAGS
        everywhere = between_tags if turn.get("role") == "tool" else self._hidden
        return {
            hide(key, everywhere): hide(value, between_tags if key == "tool_calls" else everywhere)
            for key, value in turn.items()
        }

    def _expand(self, rendered: str, visuals: Sequence[VisualInput], max_tokens: int | None = None) -> Prompt:
        """Return the prompt of a rendered conversation whose texts have stand-ins (see `shielding`)."""
        draft, waiting = _Draft(max_tokens), list(visuals)
        end = 0
        for match in self._control_pattern.finditer(rendered):
            draft.text += rendered[end : match.start()]
            self._add_control(draft, match.group(), waiting)
            end = match.end()
        draft.text += rendered[end:]
        self._flush(draft)
        if waiting:
            raise InvalidRequestError(
                f"{len(waiting)} pictures or videos have no place in the prompt", field="messages"
            )
        return Prompt(tuple(draft.ids), tuple(draft.groups))

    def _add_control(self, draft: _Draft, token: str, waiting: list[VisualInput]) -> None:
        if token not in (self._image_pad, self._video_pad):
            self._flush(draft)
            draft.ids.append(self._controls[token])
            return
        kind = "image" if token == self._image_pad else "video"
        if not waiting or waiting[0].kind != kind:
            raise InvalidRequestError(f"the prompt has a place for a {kind} that is not given", field="messages")
        visual = waiting.pop(0)
        if kind == "image":
            self._flush(draft)
            self._add_frame(draft, visual.grid, token)
        else:
            self._add_video(draft, visual)

    def _add_video(self, draft: _Draft, video: VisualInput) -> None:
        """Add, per temporal group, its time as ordinary text, then its visual tokens between start and end."""
        if len(video.timestamps) != video.grid.frames:
            raise InvalidRequestError(
                f"a video of {video.grid.frames} frame groups has {len(video.timestamps)} timestamps", field="messages"
            )
        for seconds in video.timestamps:
            draft.text += f"<{seconds:.1f} seconds>"
            self._flush(draft)
            draft.ids.append(self._controls[self._vision_start])
            self._add_frame(draft, video.grid, self._video_pad)
            draft.ids.append(self._controls[self._vision_end])

    def _add_frame(self, draft: _Draft, grid: PatchGrid, pad: str) -> None:
        group = VisualGroup(
            len(draft.ids), grid.height // self._merge, grid.width // self._merge, draft.num_visual_rows
        )
        draft.groups.append(group)
        draft.ids += [self._controls[pad]] * group.count
        draft.num_visual_rows += group.count

    def _flush(self, draft: _Draft) -> None:
        """Encode the text that has gathered between two control tokens."""
        draft.ids += self._encoder.encode(show(draft.text), draft.max_tokens)
        draft.text = ""
        if draft.max_tokens is not None and len(draft.ids) > draft.max_tokens:
            raise too_long(draft.max_tokens)


def _turn(message: ChatMessage) -> dict[str, Any]:
    content: list[dict[str, str]] = []
    for part in message.content:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        else:
            content.append({"type": "image" if isinstance(part, ImagePart) else "video"})
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    return turn


def _call(call: ToolCall) -> dict[str, Any]:
    return {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _marked_at_its_end(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the turns with a mark behind the last text."""
    *before, last = turns
    *parts, text = last["content"] or [{}]
    if text.get("type") != "text":
        raise InvalidRequestError("the last message ends without a text to go on with", field="messages")
    return [*before, last | {"content": [*parts, text | {"text": text["text"] + _CUT}]}]


def _up_to_the_mark(rendered: str) -> str:
    text, mark, _ = rendered.rpartition(_CUT)
    if not mark:
        raise InvalidRequestError("the chat template leaves the last message out", field="messages")
    return text


def _ids_of(tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, int]:
    found = {name: tokenizer.token_to_id(name) for name in names}
    absent = [name for name in _TURN_TOKENS if found[name] is None]
    if absent:
        raise ModelConfigError(
            f"{TOKENIZER_FILE} lacks {' and '.join(absent)}, which open and end turns: it is of another model. Copy it "
            "from the model that this one was made from.",
            field=TOKENIZER_FILE,
        )
    return {name: token_id for name, token_id in found.items() if token_id is not None}
