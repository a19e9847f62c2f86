"""The `local` analyser: its rules in both languages, its limits, and what must not steer it."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_server.analysis import local_rules
from messaging_server.analysis.local import analyse_transcript
from messaging_server.analysis.local_phrases import PhraseBook
from messaging_server.analysis.local_summary import cut
from messaging_server.analysis.local_text import clean, split_words
from messaging_server.config import TagConfig
from messaging_server.models import (
    MAX_TAGS,
    SUMMARY_CHARACTERS,
    AnalysisResult,
    Priority,
    SenderType,
    TranscriptMessage,
)
from tests.analysis.attacks import ATTACKS

HIGH, MEDIUM, LOW = Priority.HIGH, Priority.MEDIUM, Priority.LOW


def lead(*texts: str) -> list[TranscriptMessage]:
    return [TranscriptMessage(sender=SenderType.LEAD, text=text) for text in texts]


def agent(text: str) -> TranscriptMessage:
    return TranscriptMessage(sender=SenderType.AGENT, text=text)


def analyse(*texts: str) -> AnalysisResult:
    return analyse_transcript(lead(*texts))


ENGLISH = [
    (HIGH, "account-access", "I've forgotten my password and the reset email never arrives"),
    (HIGH, "account-access", "New phone, so no verification code. I'm locked out of my account"),
    (HIGH, "security", "Somebody hacked my account and bought things with my card"),
    (HIGH, "security", "There is a phishing site that pretends to be you, please take it down"),
    (HIGH, "billing", "You charged me twice this month, I want my money back"),
    (HIGH, "order", "I paid for the upgrade last week and still have not received it"),
    (HIGH, "outage", "Everyone in our office has the same problem, the service is down"),
    (
        HIGH,
        "complaint",
        "This is the third time I write and nobody answers. I am moving to another provider",
    ),
    (HIGH, "content-moderation", "My channel was suspended without a reason"),
    (MEDIUM, "bug", "The editor crashes every time I export a picture"),
    (MEDIUM, "hardware", "My headphones won't charge anymore"),
    (
        MEDIUM,
        "refund",
        "I would like to return the shoes, they do not fit. Can you send me a label?",
    ),
    (LOW, "how-to", "How do I change the language of the app?"),
    (LOW, "feature-request", "It would be great if you could add a dark mode"),
    (LOW, "feedback", "Love the new release, great work!"),
    (LOW, "how-to", "Is there a way to export my contacts?"),
]

SPANISH = [
    (HIGH, "account-access", "No puedo entrar a mi cuenta, dice que la contraseña es incorrecta"),
    (HIGH, "account-access", "Perdí mi teléfono y no recibo el código para iniciar sesión"),
    (HIGH, "security", "Me hackearon la cuenta y compraron cosas con mi tarjeta"),
    (HIGH, "security", "Recibí un correo sospechoso que suplanta a su empresa, es phishing"),
    (HIGH, "billing", "Me cobraron dos veces la suscripción y quiero mi dinero"),
    (HIGH, "outage", "Nadie en la oficina puede conectarse, el servicio está caído"),
    (
        HIGH,
        "complaint",
        "Es la tercera vez que escribo y nadie me responde, llevo dos semanas esperando",
    ),
    (HIGH, "content-moderation", "Me suspendieron el canal sin motivo"),
    (MEDIUM, "bug", "El botón de guardar no funciona en la última versión"),
    (MEDIUM, "hardware", "Los auriculares no cargan y el derecho suena muy bajo"),
    (MEDIUM, "refund", "Quisiera devolver el producto, no es de mi talla"),
    (LOW, "how-to", "¿Cómo puedo cambiar el idioma de la aplicación?"),
    (LOW, "feature-request", "Sería genial que agregaran un modo oscuro"),
    (LOW, "feedback", "Me encanta la nueva versión, buen trabajo"),
    (LOW, "how-to", "¿Hay alguna forma de exportar mis contactos?"),
]


@pytest.mark.parametrize(("priority", "tag", "text"), ENGLISH + SPANISH)
def test_priority_and_tag_follow_from_the_text(priority: Priority, tag: str, text: str) -> None:
    result = analyse(text)
    assert result.priority is priority, result.priority_reason
    assert tag in result.tags[:2]


def test_the_language_is_recognised() -> None:
    assert {analyse(text).language for _, _, text in ENGLISH} == {"en"}
    assert {analyse(text).language for _, _, text in SPANISH} == {"es"}
    assert analyse("Bonjour, je ne peux pas ouvrir mon dossier avec votre outil").language == "fr"
    assert analyse("12345 !!!").language is None


def test_the_reason_names_the_rule() -> None:
    reason = analyse("I am locked out of my account").priority_reason
    assert reason == "The customer cannot get into an account (rule locked_out)."


@pytest.mark.parametrize(
    ("affirmed", "denied"),
    [
        ("My account was hacked", "My account was not hacked"),
        ("Hackearon mi cuenta", "No hackearon mi cuenta"),
        ("It is urgent", "It is not urgent"),
        ("Es urgente", "No es urgente"),
    ],
)
def test_a_negation_takes_a_cue_back(affirmed: str, denied: str) -> None:
    steer = {"intruder", "urgent"}
    assert local_rules.listen(split_words(affirmed)).cues & steer
    assert not local_rules.listen(split_words(denied)).cues & steer


def test_a_negation_reaches_no_further_than_its_clause() -> None:
    assert "intruder" in local_rules.listen(split_words("No, my account was hacked")).cues


@pytest.mark.parametrize(
    ("problem", "answer", "end"),
    [
        ("I can't log in to my account", "Try the link we sent.", "It works now, thank you!"),
        ("No puedo entrar a mi cuenta", "Pruebe este enlace.", "Ya funciona, gracias"),
    ],
)
def test_solved_at_the_end_is_low(problem: str, answer: str, end: str) -> None:
    assert analyse(problem).priority is HIGH
    result = analyse_transcript([*lead(problem), agent(answer), *lead(end)])
    assert (result.priority, "(rule solved)" in (result.priority_reason or "")) == (LOW, True)


def test_not_solved_stays_what_it_was() -> None:
    messages = [
        *lead("I can't log in to my account"),
        agent("Try again."),
        *lead("It is still not fixed"),
    ]
    assert analyse_transcript(messages).priority is HIGH


@pytest.mark.parametrize(("thanks"), ["Thank you so much", "Muchas gracias"])
def test_thanks_for_an_answer_lower_by_one_level(thanks: str) -> None:
    messages = [*lead("The app crashes when I export"), agent("Update to 2.1."), *lead(thanks)]
    assert analyse_transcript(messages).priority is LOW
    assert analyse(messages[0].text, thanks).priority is MEDIUM


def test_without_a_customer_the_agents_are_summarised() -> None:
    result = analyse_transcript([agent("Welcome! Your delivery is planned for Monday.")])
    assert result.priority is LOW
    assert "delivery" in result.summary
    assert analyse_transcript([]).priority is LOW


@pytest.mark.parametrize("text", ["", "   ", "\u200b\u2060", "\x00", "\ud800", "🙃🙃", "...", "?"])
def test_nothing_to_read(text: str) -> None:
    result = analyse(text)
    assert result.priority in {MEDIUM, LOW}
    assert result.summary
    result.summary.encode()


# --------------------------------------------------------------------------- summary


def test_the_summary_takes_the_sentences_that_matter() -> None:
    result = analyse_transcript(
        [
            *lead(
                "Hi there! Hope you are well. My invoice 4711 from March shows the wrong address."
            ),
            agent("Hello, which address should the invoice show?"),
            *lead("Thanks for the quick answer. The invoice must show our office in Bilbao."),
        ]
    )
    assert "invoice 4711" in result.summary
    assert "Bilbao" in result.summary
    assert "Hope you are well" not in result.summary


def test_a_long_text_is_cut_between_words() -> None:
    words = " ".join(f"subject{number}" for number in range(400))
    summary = analyse(words).summary
    assert len(summary) <= SUMMARY_CHARACTERS
    assert summary.removesuffix("…").split()[-1] in words.split()


def test_cut_keeps_what_fits_and_breaks_a_single_long_word() -> None:
    assert cut("short", limit=10) == "short"
    assert cut("one two three", limit=9) == "one two…"
    assert cut("x" * 50, limit=10) == "x" * 9 + "…"


def test_handles_and_links_at_the_start_are_left_out() -> None:
    result = analyse("@acme @acme_help the printer jams https://example.com/photo")
    assert result.summary == "The printer jams."


# --------------------------------------------------------------------------- tags


def test_only_the_team_s_names_come_out() -> None:
    team = [
        TagConfig(name="Billing"),
        TagConfig(name="Facturación"),
        TagConfig(name="warehouse", description="Pallets, forklifts and loading ramps"),
    ]
    assert analyse_transcript(lead("You charged me twice"), tags=team).tags[0] == "Billing"
    assert "Facturación" in analyse_transcript(lead("Me cobraron dos veces"), tags=team).tags
    found = analyse_transcript(lead("The forklift at ramp 3 has lost a pallet"), tags=team).tags
    assert found == ("warehouse",)
    assert analyse_transcript(lead("How do I sing?"), tags=team).tags == ()


def test_a_team_s_tag_is_found_by_its_own_name() -> None:
    team = [TagConfig(name="onboarding-call"), TagConfig(name="bug")]
    result = analyse_transcript(lead("Can we plan the onboarding call for May?"), tags=team)
    assert result.tags[0] == "onboarding-call"


def test_no_more_tags_than_allowed() -> None:
    everything = " ".join(text for _, _, text in ENGLISH)
    assert len(analyse(everything).tags) <= MAX_TAGS


# --------------------------------------------------------------------------- commands


def test_a_command_leaves_the_rest_of_its_sentence() -> None:
    result = analyse("Mark this as urgent, because I cannot log in to my account")
    assert result.priority is HIGH
    assert "urgent" not in result.summary


# --------------------------------------------------------------------------- guarantees

transcripts = st.lists(
    st.builds(
        TranscriptMessage,
        sender=st.sampled_from(SenderType),
        text=st.text(max_size=300)
        | st.sampled_from([text for _, _, text in ENGLISH + SPANISH])
        | st.sampled_from([attack for _, attack in ATTACKS]),
    ),
    max_size=8,
)


@given(messages=transcripts)
@settings(deadline=None, max_examples=200)
def test_any_text_gives_a_result_within_the_limits(messages: list[TranscriptMessage]) -> None:
    result = analyse_transcript(messages)
    assert 0 < len(result.summary) <= SUMMARY_CHARACTERS
    result.summary.encode()
    assert len(result.tags) <= MAX_TAGS
    assert set(result.tags) <= set(local_rules.load_lexicon().tag)
    assert result == analyse_transcript(messages)


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "a b " * 2_500, "😀" * 10_000, "@a" * 5_000, "\u0301" * 9_999]
)
def test_very_long_messages(text: str) -> None:
    assert len(analyse(*[text] * 40).summary) <= SUMMARY_CHARACTERS


def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    script = (
        "from tests.analysis.test_local import ENGLISH, SPANISH, analyse\n"
        "print(analyse(*(t for _, _, t in ENGLISH + SPANISH)),"
        " *(analyse(t) for _, _, t in ENGLISH + SPANISH))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1


# --------------------------------------------------------------------------- the lexicon


def test_every_cue_and_priority_has_points() -> None:
    weights = local_rules.load_weights()
    assert set(local_rules.load_lexicon().cue) < set(weights.features)
    tables = [*weights.features.values(), *weights.words.values()]
    assert all(set(points) == set(Priority) for points in tables)


def test_every_cue_speaks_both_languages() -> None:
    assert all(cue.en and cue.es for cue in local_rules.load_lexicon().cue.values())


def test_cues_that_tags_count_exist() -> None:
    lexicon = local_rules.load_lexicon()
    assert all(set(rule.cues) <= set(lexicon.cue) for rule in lexicon.tag.values())


def test_the_grammar_of_phrases() -> None:
    book = PhraseBook({"it": ["lost|forgot .. <key>", "crash*"]}, classes={"key": ["key", "code"]})
    assert [found.end for found in book.find(["i", "lost", "my", "old", "key"])] == [5]
    assert not list(book.find(["lost", "a", "b", "c", "d", "key"]))
    assert list(book.find(["crashing"]))


def test_clean_removes_what_nobody_sees() -> None:
    assert clean("a\u200bb\u202ec\x00d\ud800e") == "abc de"
    assert clean("\uff46\uff55\uff4c\uff4c") == "full"
