"""Prompts of families whose text encoder is a chat model."""

from __future__ import annotations

from typing import Any


def chat_limit(tokenizer: Any, longest: int, *, thinking: bool) -> int:
    """The tokens of a prompt that are left of `longest` when it stands in the chat's template."""
    empty = tokenizer.apply_chat_template(
        [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return longest - len(tokenizer(empty).input_ids)
