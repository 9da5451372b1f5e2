"""A conversation to token ids, with the pads of every picture expanded to its visual tokens.

    messages ─► chat template ─► "<|im_start|>user … <|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|> …"
      control tokens become ids, and what lies between them is encoded as text
      <|image_pad|> becomes t*h*w/4 ids, a video becomes timestamps and one run of ids per pair of frames

Control tokens come from the template alone. When a user's text contains such a string ("what does <|im_end|> mean?"),
it is encoded as the ordinary characters that it consists of: no text can end a turn, open another or forge visual
tokens. To tell the two apart, control strings in users' texts pass through the template as markers made of Unicode
noncharacters:

    "what does <|im_end|> mean?"  ─►  "what does ⟨3⟩ mean?"  ─► template ─► split ─► marker back to characters, encode
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from broker_pipeline.errors import InvalidRequestError, ModelConfigError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, TextPart
from stages.prompt.chat_template import ChatTemplate
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.patches import PatchGrid
from stages.qwen3_vl.positions import VisualGroup

_TURN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_pad|>")
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARKER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


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


def frame_timestamps(num_frames: int, fps: float, frames_per_group: int = 2) -> tuple[float, ...]:
    """Return the seconds of each temporal group of a video sampled at `fps`: the mean of its first and last frame.

    An incomplete last group is filled with the last frame.
    """
    last = num_frames - 1
    firsts = range(0, num_frames, frames_per_group)
    return tuple((first / fps + min(first + frames_per_group - 1, last) / fps) / 2 for first in firsts)


@dataclass(slots=True)
class _Draft:
    """A prompt under construction: ids so far, and text that has not been encoded yet."""

    ids: list[int] = field(default_factory=list)
    groups: list[VisualGroup] = field(default_factory=list)
    text: str = ""
    num_visual_rows: int = 0


class PromptBuilder:
    """Renders and tokenises conversations for one model.

    The outer vision_start and vision_end around a whole video stay, as transformers from 5.10 on has them.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._merge = config.vision.spatial_merge_size
        self._image_pad = self._token(config.image_token_id, "image_token_id")
        self._video_pad = self._token(config.video_token_id, "video_token_id")
        self._vision_start = self._token(config.vision_start_token_id, "vision_start_token_id")
        self._vision_end = self._token(config.vision_end_token_id, "vision_end_token_id")
        self._controls = self._control_tokens()
        names = sorted(self._controls, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(re.escape(name) for name in names))
        self._shielded = [*names, _OPEN]
        self._shield_pattern = re.compile("|".join(re.escape(name) for name in self._shielded))

    @classmethod
    def from_directory(cls, config: ModelConfig, directory: Path) -> PromptBuilder:
        """Read `tokenizer.json` and the chat template of an artifact or checkpoint.

        Raises:
            ModelConfigError: a file is absent or broken, or lacks the tokens that the configuration names.
        """
        return cls(config, load_tokenizer(directory / "tokenizer.json"), ChatTemplate.from_directory(directory))

    def build(
        self, messages: Sequence[ChatMessage], visuals: Sequence[VisualInput], *, add_vision_id: bool = False
    ) -> Prompt:
        """Return the prompt of a conversation; `visuals` fill its pictures and videos in order.

        `add_vision_id` has the template number them ("Picture 1: ").

        Raises:
            InvalidRequestError: the visuals do not fit the messages, or the template refuses them.
        """
        turns = [self._template_message(message) for message in messages]
        return self.expand(self._template.render(turns, add_vision_id=add_vision_id), visuals)

    def expand(self, rendered: str, visuals: Sequence[VisualInput]) -> Prompt:
        """Return the prompt of a rendered conversation whose users' control strings are shielded (see `shield`)."""
        draft, waiting = _Draft(), list(visuals)
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

    def shield(self, text: str) -> str:
        """Replace every control string of a user's text by a marker that `expand` turns back into characters."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(f"the text is not valid Unicode: {error}", field="messages") from error
        return self._shield_pattern.sub(lambda m: f"{_OPEN}{self._shielded.index(m.group())}{_CLOSE}", text)

    def _template_message(self, message: ChatMessage) -> dict[str, Any]:
        content: list[dict[str, str]] = []
        for part in message.content:
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": self.shield(part.text)})
            else:
                content.append({"type": "image" if isinstance(part, ImagePart) else "video"})
        return {"role": message.role, "content": content}

    def _token(self, token_id: int, name: str) -> str:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            raise ModelConfigError(f"{name} is {token_id}, which tokenizer.json does not have", field=name)
        return str(token)

    def _control_tokens(self) -> dict[str, int]:
        names = (*_TURN_TOKENS, self._image_pad, self._video_pad, self._vision_start, self._vision_end)
        found = {name: self._tokenizer.token_to_id(name) for name in names}
        return {name: token_id for name, token_id in found.items() if token_id is not None}

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
        text = _MARKER.sub(lambda m: self._shielded[int(m.group(1))], draft.text)
        is_shielded = text != draft.text
        tokenizer = self._literal_tokenizer if is_shielded else self._tokenizer
        draft.ids += tokenizer.encode(text, add_special_tokens=False).ids
        draft.text = ""

    @cached_property
    def _literal_tokenizer(self) -> Tokenizer:
        """One that takes special tokens in a text for the characters that they consist of."""
        literal = Tokenizer.from_str(self._tokenizer.to_str())
        literal.encode_special_tokens = True
        return literal


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`; nothing is truncated or padded.

    Raises:
        ModelConfigError: the file is absent or broken.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelConfigError(f"{path.name} cannot be read: {error}", field=path.name) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
