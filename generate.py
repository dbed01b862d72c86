"""Talk to a model: what does it answer, and what is the answer worth?

bash train.sh --local generate.py MODEL [PROMPT ...] [section.key=value ...]
    Answers each prompt by itself. Without prompts they are read from --file or standard input. On a
    terminal a conversation begins: the model sees what was said before, /new forgets it, and
    Ctrl-D ends it.

bash train.sh --local generate.py MODEL --run [--task NAME] [--row N] [PROMPT]
    Asks what a row of the task asks, by default the task that the model was trained on. Runs the
    answer in the sandbox and shows its Grade and its rewards. A PROMPT replaces the row's own.

MODEL is a folder with an adapter (final_model, checkpoint-N) or a whole model, the output folder of
a run, a model on the Hub, or `tiny`. The answer goes to standard output, the thinking and all else
to standard error. It ends with the exit codes of docs/runs.md.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from job import generation
from job.config import Config
from job.errors import DONE, STOPPED_BY_SIGNAL, ConfigError, exit_code_of
from job.evaluation.model_evaluation import Request, make_chat, with_task
from job.fetch import fetch
from job.generation import Conversation, Screen
from job.model import ModelSource, find_model, load_for_inference
from tasks import takes_turns


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("words", nargs="*", metavar="PROMPT", help="what to say, each by itself")
    parser.add_argument("--file", metavar="FILE", help="a prompt; or, as .jsonl, one a line")
    parser.add_argument("--system", metavar="TEXT", help="a system message before all others")
    parser.add_argument("--reasoning-effort", choices=("low", "medium", "high"))
    parser.add_argument("--temperature", metavar="T", type=float, help="default: grpo.temperature")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, help="default: what fits")
    parser.add_argument("--task", metavar="NAME", help="ask what a row of this task asks")
    parser.add_argument("--row", metavar="N", type=int, default=0, help="of the task; default: 0")
    parser.add_argument("--run", action="store_true", help="grade the answer, and show its Grade")
    parser.add_argument("--seed", metavar="N", type=int, help="makes the answers repeat")
    parser.add_argument("--config", metavar="FILE", action="append", default=[])
    parser.add_argument(
        "--fetch", action="store_true", help="download what this needs, and stop; for train.sh"
    )
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: generate_command(arguments))


def generate_command(arguments: argparse.Namespace) -> int:
    # What can be refused before the model is loaded
    check_numbers(arguments)
    overrides = [word for word in arguments.words if is_override(word)]
    words = [word for word in arguments.words if not is_override(word)]
    source = find_model(arguments.model)
    request = Request(task=arguments.task, config_files=arguments.config, overrides=overrides)
    config = with_task(source, request)
    if arguments.fetch:
        fetch([config])
        return DONE
    prompts = []
    if not asks_task(arguments) or words or arguments.file:
        prompts = generation.read_prompts(words, arguments.file, sys.stdin)

    try:
        converse(source, config, arguments, prompts)
    except KeyboardInterrupt:
        return STOPPED_BY_SIGNAL + signal.SIGINT
    return DONE


def converse(
    source: ModelSource, config: Config, arguments: argparse.Namespace, prompts: Sequence[str]
) -> None:
    """Load the model, and let it answer what it is asked."""
    conversation = start(source, config, arguments)
    if asks_task(arguments):
        answer_task(conversation, config, arguments, prompts)
    elif prompts:
        answer_each(conversation, prompts)
    else:
        talk(conversation)


def check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.temperature is not None and not 0 <= arguments.temperature < 100:
        raise ConfigError(f"--temperature: must be 0 or more, not {arguments.temperature}")
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens: must be above 0, not {arguments.max_new_tokens}")


def is_override(word: str) -> bool:
    """Whether a word of the command line is section.key=value."""
    key, equals, _ = word.partition("=")
    section, dot, name = key.partition(".")
    return bool(equals and dot) and section.isidentifier() and name.isidentifier()


def asks_task(arguments: argparse.Namespace) -> bool:
    return arguments.run or arguments.task is not None


def start(source: ModelSource, config: Config, arguments: argparse.Namespace) -> Conversation:
    """Load the model."""
    chat = make_chat(config, config.tasks)
    if arguments.reasoning_effort and not chat.has_effort:
        print(f"note: {source.name} has no reasoning effort; it is ignored", file=sys.stderr)
    temperature = arguments.temperature
    if temperature is None:
        temperature = config.grpo.get("temperature", 1.0)
    model, tokenizer = load_for_inference(source, config)
    if arguments.seed is not None:
        import torch

        torch.manual_seed(arguments.seed)
    return Conversation(
        model=model,
        tokenizer=tokenizer,
        chat=chat,
        config=config,
        reasoning_effort=arguments.reasoning_effort or config.tasks[0].reasoning_effort,
        temperature=temperature,
        max_new_tokens=arguments.max_new_tokens,
        system=arguments.system,
    )


def answer_each(conversation: Conversation, prompts: Sequence[str]) -> None:
    """Answer prompts that have nothing to do with each other."""
    screen = Screen()
    for prompt in prompts:
        conversation.start_again()
        screen.end(conversation.ask(prompt, screen.show))


def answer_task(
    conversation: Conversation,
    config: Config,
    arguments: argparse.Namespace,
    prompts: Sequence[str],
) -> None:
    """Answer what a row of the task asks, and grade it if that is wanted."""
    if len(prompts) > 1:
        raise ConfigError("one prompt at most can take the place of a task's own")
    options = config.tasks[0]
    row = generation.row_of_task(options, arguments.row)
    if prompts:
        row["prompt"] = [{"role": "user", "content": prompts[0]}]
    for message in row["prompt"]:
        print(f"{message['role']}: {message['content']}\n", file=sys.stderr)
    if takes_turns(options):
        episode, scored = generation.play_row(conversation, row, options, config)
        print(generation.transcript_in_words(episode.messages))
        if arguments.run:
            print(f"\n{generation.grade_in_words(scored)}", file=sys.stderr)
        return
    screen = Screen()
    reading = conversation.answer([*conversation.messages, *row["prompt"]], screen.show)
    screen.end(reading)
    if arguments.run:
        scored = generation.grade_answer(reading, row, options, config)
        print(f"\n{generation.grade_in_words(scored)}", file=sys.stderr)


def talk(conversation: Conversation) -> None:
    """A conversation on a terminal."""
    screen = Screen()
    print("/new forgets what was said, Ctrl-C stops an answer, Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if text.strip() == "/new":
            conversation.start_again()
        elif text.strip():
            answer_in_talk(conversation, text, screen)


def answer_in_talk(conversation: Conversation, text: str, screen: Screen) -> None:
    """One answer, which Ctrl-C or a prompt that does not fit ends without ending the talk."""
    reading = None
    try:
        reading = conversation.ask(text, screen.show)
    except KeyboardInterrupt:
        print("\n(stopped; not kept in the history)", file=sys.stderr)
    except ConfigError as error:
        print(f"error: {error}; or type /new", file=sys.stderr)
    screen.end(reading)


if __name__ == "__main__":
    sys.exit(main())
