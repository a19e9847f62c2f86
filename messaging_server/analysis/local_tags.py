"""Which tags a conversation gets: the built-in ones, or those of the team's own list.

A team's tag that is a built-in one under one of its names counts as that one; any other is
looked for by the words of its name and description.
"""

from collections.abc import Mapping, Sequence

from messaging_server.analysis.local_rules import MIN_TAG_POINTS, load_lexicon
from messaging_server.analysis.local_summary import key_stems
from messaging_server.analysis.local_text import split_words
from messaging_server.config import TagConfig
from messaging_server.models import MAX_TAGS

MIN_SHARE_OF_FIRST = 0.5
NAME_POINTS = 6.0
DESCRIPTION_POINTS = 1.5
MAX_DESCRIPTION_WORDS = 4


def choose_tags(
    points: Mapping[str, float], *, said: Sequence[str], team: Sequence[TagConfig]
) -> tuple[str, ...]:
    """At most MAX_TAGS names, most points first; `points` are the built-in tags', `said` stems."""
    if team:
        points = {tag.name: _team_points(tag, points, said=frozenset(said)) for tag in team}
    ranked = sorted(points, key=lambda name: -points[name])
    enough = max([MIN_TAG_POINTS, *(p * MIN_SHARE_OF_FIRST for p in points.values())])
    return tuple(name for name in ranked if points[name] >= enough)[:MAX_TAGS]


def _team_points(tag: TagConfig, points: Mapping[str, float], *, said: frozenset[str]) -> float:
    built_in = _built_in_name(tag.name)
    if built_in:
        return points[built_in]
    name = frozenset(key_stems(split_words(tag.name).words))
    description = frozenset(key_stems(split_words(tag.description).words)) - name
    share = len(name & said) / len(name) if name else 0.0
    described = min(len(description & said), MAX_DESCRIPTION_WORDS)
    return share * NAME_POINTS + described * DESCRIPTION_POINTS


def _built_in_name(name: str) -> str | None:
    """The built-in tag that `name` means: itself or one of its `also` names, however written."""
    wanted = split_words(name).words
    for built_in, rule in load_lexicon().tag.items():
        if wanted in {split_words(other).words for other in (built_in, *rule.also)}:
            return built_in
    return None
