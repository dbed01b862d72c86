"""A rollout that says what is written for it, in place of a model."""

import json

from job.rollout import BatchRollout


def ids_of(tool_format, text):
    if isinstance(text, list):  # of ids already
        return text
    return tool_format.chat.tokenizer(text, add_special_tokens=False)["input_ids"]


class ScriptedRollout(BatchRollout):
    """Says what is written for each row, turn by turn.

    Args:
        pauses: steps before each that ends a turn, in which none ends.
    """

    def __init__(self, tool_format, scripts, is_whole=True, pauses=0):
        super().__init__(None)
        self.decodes_to_the_end = is_whole
        self.scripts = [list(script) for script in scripts]
        self.tool_format, self.steps = tool_format, []
        self.pauses, self.paused = pauses, 0

    def step(self):
        rows = list(self._waiting)
        self.steps.append(rows)
        if rows and self.paused < self.pauses:
            self.paused += 1
            return []
        self.paused = 0
        said = [ids_of(self.tool_format, self.scripts[row].pop(0)) for row in rows]
        self._complete = lambda prompts: said
        return super().step()


def harmony_call(tool, **arguments):
    return (
        f"<|channel|>commentary to=functions.{tool} <|constrain|>json<|message|>"
        f"{json.dumps(arguments)}<|call|>"
    )


def harmony_final(text):
    return f"<|channel|>final<|message|>{text}<|return|>"
