"""Real talk to test with: 15,345 messages of questions and answers in 28 languages and some twenty scripts.

It comes from the `chatterbot-corpus` package (1.3.3, BSD 3-Clause), read where it is installed.
"""

import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

# The same result, read much faster where PyYAML was built with libyaml.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The shipped agents; the topics, sorted, are dealt to them in turn.
_AGENTS = ("general_01", "product_01", "coding_01", "bug_01")

# Left out when the transcript was first made (other spellings of them are in). Figures are comparable only
# over the same rows, so it stays that way.
_TOPICS_LEFT_OUT = frozenset({"emotion", "gossip", "psychology"})


def transcript() -> Iterator[dict[str, Any]]:
    """Yields the messages, always the same in the same order: by language, topic and conversation.

    Each is `{"role": "user"|"agent", "agent_id": ..., "content": ..., "metadata": {"language", "topic"}}`;
    `agent_id` is one of the four shipped agents and absent for users. A conversation is a question of the
    user followed by one or more answers of the agent that the topic belongs to.
    """
    files = _files()
    agents = _agent_of_each_topic(files)
    for file in files:
        language, topic = file.parent.name, file.stem
        for conversation in yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)["conversations"]:
            # Three lines of the corpus are a bare string, their list mark lost: no question, no answer.
            if not isinstance(conversation, list):
                continue
            question, *answers = conversation
            metadata = {"language": language, "topic": topic}
            yield {"role": "user", "content": question, "metadata": metadata}
            for answer in answers:
                yield {
                    "role": "agent",
                    "agent_id": agents[topic],
                    "content": answer,
                    "metadata": dict(metadata),
                }


def ndjson(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the rows as newline-delimited JSON in UTF-8, each line ended, as an import takes them."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _files() -> list[Path]:
    """The corpus's files in the order of the transcript."""
    package = importlib.util.find_spec("chatterbot_corpus")
    if package is None or package.origin is None:
        raise RuntimeError("chatterbot-corpus is not installed: it is listed in requirements-test.txt")
    data = Path(package.origin).parent / "data"
    # By the parts of the path, so that no separator takes part in the order.
    files = sorted(data.glob("*/*.yml"), key=lambda file: (file.parent.name, file.name))
    return [file for file in files if file.stem not in _TOPICS_LEFT_OUT]


def _agent_of_each_topic(files: list[Path]) -> dict[str, str]:
    topics = sorted({file.stem for file in files})
    return {topic: _AGENTS[index % len(_AGENTS)] for index, topic in enumerate(topics)}
