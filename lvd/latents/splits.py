"""Split samples once into train, val and test: by prompt, so that no near copy of one is in two splits."""

import math
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

from datasketch import MinHash, MinHashLSH
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lvd.files import sha256
from lvd.latents.format import SPLITS, UNLABELLED, Categories, Sample

FRACTIONS = (0.6, 0.2, 0.2)  # train, val, test

# From this share of common words on (weighted Jaccard), two prompts are near copies of each other.
_NEAR = 0.8
# They say little of what a video shows.
_FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "its", "their", "it", "is", "are", "be", "as"),
        *("of", "in", "on", "at", "to", "into", "onto", "from", "by", "with", "and", "or"),
    )
)


def fold(prompt: str) -> str:
    """A prompt without case, spacing and punctuation: what two prompts share when they are the same text."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return "".join(char for char in text if unicodedata.category(char)[0] not in "PZC")


def default_prompt_id(prompt: str) -> str:
    return _short_digest(fold(prompt))


def prompt_keys(sample: Sample) -> set[str]:
    """Two samples with a key in common have equal prompts (after `fold`) or prompt ids. Short digests.

    Near copies have none in common.
    """
    text = sample.prompt or sample.prompt_id  # those without a prompt are not alike
    return {_short_digest(f"text {fold(text)}"), _short_digest(f"id {sample.prompt_id}")}


def assign_splits(
    prompts: Sequence[str],
    prompt_ids: Sequence[str],
    categories: Sequence[Categories],
    seed: int,
    held_out: Collection[int] | None = None,
    learned: Collection[int] = (),
) -> list[str]:
    """The split of every sample, balanced over the sets of categories, the safe and the unlabelled ones.

    Samples that share a prompt (after `fold`, or nearly) or a prompt_id go together. Whole groups are dealt,
    in an order drawn from `seed`, to the split that is furthest below its share: of the group's own set of
    categories, and of all samples.

    `held_out` are the unsafe samples that somebody has chosen for the test split already. Their groups are
    test, other unsafe ones are not, and safe and unlabelled ones are dealt as ever. `learned` are samples
    that nothing may be measured on: their groups are train.
    """
    group_of = prompt_groups(prompts, prompt_ids)
    members: dict[int, list[int]] = defaultdict(list)
    for sample, group in enumerate(group_of):
        members[group].append(sample)
    test = {group_of[sample] for sample in held_out or ()}
    fixed = {
        **dict.fromkeys((group_of[sample] for sample in learned), "train"),
        **dict.fromkeys(test, "test"),
    }

    strata: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for group, samples in members.items():
        if group not in fixed:
            strata[_stratum([categories[sample] for sample in samples])].append(group)

    split_of_group = dict(fixed)
    rng = random.Random(seed)
    if held_out is None:
        split_of_group |= _deal(strata, members, FRACTIONS, rng)
    else:
        unsafe = {stratum: groups for stratum, groups in strata.items() if set(stratum) - {UNLABELLED.value}}
        others = {stratum: groups for stratum, groups in strata.items() if stratum not in unsafe}
        split_of_group |= _deal(others, members, FRACTIONS, rng)
        split_of_group |= _deal(unsafe, members, (*FRACTIONS[:2], 0.0), rng)
    return [split_of_group[group] for group in group_of]


def _stratum(group: Sequence[Categories]) -> tuple[str, ...]:
    """What a group is dealt with: all that is known of its samples; nothing is, if all are unlabelled."""
    known = [categories for categories in group if categories is not UNLABELLED]
    if not known:
        return (UNLABELLED.value,)  # no category has that name
    return tuple(sorted({name for categories in known for name in categories}))


def _deal(
    strata: Mapping[tuple[str, ...], list[int]],
    members: Mapping[int, list[int]],
    fractions: Sequence[float],
    rng: random.Random,
) -> dict[int, str]:
    """The split of every group of `strata`, in the proportions of `fractions`."""
    split_of_group = {}
    shares = [fraction / sum(fractions) for fraction in fractions]
    dealt_in_all = [0, 0, 0]
    for _, groups in sorted(strata.items()):
        rng.shuffle(groups)
        dealt = [0, 0, 0]
        for group in sorted(groups, key=lambda group: -len(members[group])):
            size = len(members[group])
            deficits = [
                share * (sum(dealt) + size) - dealt[i] + share * (sum(dealt_in_all) + size) - dealt_in_all[i]
                for i, share in enumerate(shares)
            ]
            chosen = deficits.index(max(deficits))
            dealt[chosen] += size
            dealt_in_all[chosen] += size
            split_of_group[group] = SPLITS[chosen]
    return split_of_group


def prompt_groups(prompts: Sequence[str], prompt_ids: Sequence[str]) -> list[int]:
    """A group number a sample: connected through equal or near prompts, or equal prompt ids.

    Samples of one group are in one split, and count as one where independent prompts are counted.
    """
    nodes: dict[tuple[str, str], int] = {}
    texts = [nodes.setdefault(("text", fold(prompt)), len(nodes)) for prompt in prompts]
    ids = [nodes.setdefault(("id", prompt_id), len(nodes)) for prompt_id in prompt_ids]
    near = [(texts[a], texts[b]) for a, b in near_copies(prompts)]
    edges = [*zip(texts, ids, strict=True), *near]
    graph = coo_array(([1] * len(edges), tuple(zip(*edges, strict=True))), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    return [int(component[text]) for text in texts]


def count_near_duplicates(samples: Sequence[Sample]) -> int:
    """How many of the different prompts (after `fold`) are near copies of another one."""
    prompts = list({fold(sample.prompt): sample.prompt for sample in samples if sample.prompt}.values())
    return len({number for pair in near_copies(prompts) for number in pair})


def _short_digest(text: str) -> str:
    return sha256(text.encode())[:12]


def near_copies(prompts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of prompts that are nearly the same: at least 80% of their content words (Jaccard) are common.

    "a red three drifting left" and "a red three, drifting to the left!" are. A word counts for less the more
    prompts have it (`_weights`), so that what a template repeats makes no two prompts alike. Of prompts with
    the same words, whatever their order, each is paired with the first alone. The others are found by MinHash
    (Broder, 1997): of two that share 60% of their rarer words, a pair is missed with probability 4e-5.
    """
    first: dict[frozenset[str], int] = {}
    pairs = []
    for number, prompt in enumerate(prompts):
        same = first.setdefault(_content_words(prompt), number)
        if same != number:
            pairs.append((same, number))
    count = Counter(chain.from_iterable(first))
    weight = _weights(count, len(first))
    bands, rows = 42, 3
    index = MinHashLSH(num_perm=bands * rows, params=(bands, rows))
    empty = MinHash(num_perm=bands * rows)
    for words, number in first.items():
        rare = [word for word in words if count[word] <= max(50, len(first) // 5)] or words
        sketch = empty.copy()
        sketch.update_batch([word.encode() for word in sorted(rare)])
        for other in sorted(index.query(sketch), key=first.__getitem__):
            common, both = (sum(map(weight.__getitem__, part)) for part in (words & other, words | other))
            if common >= _NEAR * both:
                pairs.append((first[other], number))
        index.insert(words, sketch)
    return pairs


def _weights(count: Mapping[str, int], prompts: int) -> dict[str, float]:
    """1 for a word that one prompt in ten has or fewer, falling with the logarithm to 0.29 for one of all."""
    return {word: min(1.0, math.log1p(prompts / with_it) / math.log1p(10)) for word, with_it in count.items()}


def _content_words(prompt: str) -> frozenset[str]:
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).casefold())
    return frozenset(words) - _FUNCTION_WORDS or frozenset([fold(prompt)])
