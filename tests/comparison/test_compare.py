"""Two models side by side: the questions, the verdicts, the curve, the page, the command line."""

import importlib
import json
from collections import Counter
from html.parser import HTMLParser

import pytest
from rich.console import Console

from marco_fast import SearchConfig
from marco_fast.cli import main
from marco_fast.commands.compare import table
from marco_fast.comparison.compare import Answer, Comparison, _graded, compare, questions_of
from marco_fast.comparison.page import to_dict, write_report
from marco_fast.engine.engine import Engine
from marco_fast.questions.questions import LEVELS, TESTS, is_correct
from marco_fast.search.final import agree, final_of
from tests.support.models import save_model
from tests.support.scripts import answered

CONFIG = SearchConfig(expansions=3, rollout_tokens=200)
HOSTILE = "</pre><script>window.hit = 1</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(save_model("llama3", tmp_path_factory.mktemp("llama3")))


@pytest.fixture(scope="module")
def made(tiny) -> Comparison:
    return compare(["nano-marco", tiny], CONFIG, count=9, tests=("letters", "facts"))


def answer(text: str, right: bool, curve=((10, True),), tokens: int = 10, **more) -> Answer:
    given = {"final": text, "finished": True, "confidence": 0.9, "support": 0.5, "seconds": 0.1}
    return Answer(
        text=text, thought=f"thought {text}", right=right, tokens=tokens, curve=tuple(curve),
        **(given | more),
    )  # fmt: skip


def by_hand(names=("a", "b")) -> Comparison:
    """Two models, one test of two questions, the second model not yet done."""
    made = Comparison(list(names), CONFIG, {"letters": questions_of("letters", 2, 0)})
    made.answers[names[0]]["letters"] += [
        answer("3", True, ((10, False), (30, True)), 40),
        answer("x", False, ((20, True), (25, False)), 30),
    ]
    made.answers[names[1]]["letters"].append(answer("4", False, ((50, False),), 50))
    return made


@pytest.mark.parametrize("test", TESTS)
def test_few_questions_cover_all_levels_and_both_languages(test):
    asked = questions_of(test, 16, seed=1)
    assert Counter(each.level for each in asked) == dict.fromkeys(LEVELS, 2)
    assert sum(each.language == "zh" for each in asked) == 4
    assert len({each.text for each in asked}) == 16
    assert [each.text for each in questions_of(test, 16, seed=1)] == [each.text for each in asked]
    assert {each.level for each in asked[:3]} == {1, 4, 7}


def test_every_verdict_and_curve_is_that_of_the_graded_path(made, tiny):
    for model in ("nano-marco", tiny):
        for test in ("letters", "facts"):
            answers = made.answers[model][test]
            assert len(answers) == 9
            for question, each in zip(made.asked[test], answers, strict=True):
                assert each.right == agree(each.final, question.answer)
                assert each.right == is_correct(question, each.text)
                assert 0 < each.confidence <= 1
                assert (each.support > 0) == each.finished
                assert each.curve[-1][1] == each.right
                assert [at for at, _ in each.curve] == sorted(at for at, _ in each.curve)
                assert each.curve[-1][0] <= each.tokens
                assert each.finished or each.curve == ((each.tokens, each.right),)
    assert made.share("nano-marco").right > made.share(tiny).right
    assert made.share("nano-marco").total == 18
    assert made.unfinished(tiny) == made.unfinished(tiny, "letters") + made.unfinished(
        tiny, "facts"
    )


QUESTION = questions_of("letters", 1, 0)[0]
PLAIN = [
    (f"I count and count: it is {QUESTION.answer}.<|im_end|>", True, True),
    (f"There are {QUESTION.answer} in it, I think, and no 99.<|im_end|>", False, True),
    ("The letter occurs 99 times.<|im_end|>", False, True),
    (f"<think>\nIs it 99?\n</think>\n\nThe answer is {QUESTION.answer}<|im_end|>", True, True),
    (f"The answer is {QUESTION.answer}", True, False),
]


@pytest.mark.parametrize(("reply", "right", "finished"), PLAIN)
def test_a_reply_without_tags_is_graded_by_its_final(reply, right, finished, tiny):
    with Engine.from_pretrained(tiny) as engine:
        result = answered(engine, [reply], final=lambda text, _: final_of(text, QUESTION.text))
    graded = _graded(QUESTION, result)
    assert (graded.right, graded.finished) == (right, finished)
    assert graded.text == result.answer
    assert graded.confidence == result.confidence > 0
    assert graded.curve[-1][1] == right


def test_the_curve_follows_the_vote(tiny):
    """Of 99 (twice) and the right answer (three times), the later majority wins."""
    right = QUESTION.answer
    with Engine.from_pretrained(tiny) as engine:
        says = ["99", "99", right, right + ".", f"It is {right}"]
        replies = [f"{each}<|im_end|>" for each in says]
        result = answered(engine, replies, answer="majority", parallel=1)
    graded = _graded(QUESTION, result)
    assert [verdict for _, verdict in graded.curve] == [False] * 3 + [False, True]
    assert [at for at, _ in graded.curve] == [at for at, _ in result.ends]


def test_the_same_comparison_comes_out_again(made, tiny):
    again = compare(["nano-marco", tiny], CONFIG, count=9, tests=("letters",))
    for model in made.models:
        old, new = made.answers[model]["letters"], again.answers[model]["letters"]
        assert [(a.text, a.tokens, a.curve) for a in old] == [
            (a.text, a.tokens, a.curve) for a in new
        ]


def test_the_curve_ends_searches_at_every_budget():
    assert by_hand().curve("a") == [
        ((10 + 10) / 2, 0.0),
        ((20 + 20) / 2, 0.5),
        ((25 + 25) / 2, 0.0),
        ((30 + 30) / 2, 0.5),
    ]
    assert by_hand().curve("b") == [(50.0, 0.0)]


def test_watching_sees_the_answers_come(tiny):
    seen = []
    compare(
        [tiny, "nano-marco"], CONFIG, count=10, tests=("letters",),
        watch=lambda c: seen.append([c.share(m).total for m in c.models]),
    )  # fmt: skip
    assert seen == [[0, 0], [8, 0], [10, 0], [10, 8], [10, 10]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"count": 0}, "at least 1 question per test, got 0"),
        ({"models": ["nano-marco", "nano-marco"]}, "models of different names"),
        ({"models": []}, "models of different names"),
        ({"tests": ["poetry"]}, "got 'poetry'"),
    ],
)
def test_bad_input_is_refused(arguments, says):
    arguments = {"models": ["nano-marco", "x"], **arguments}
    with pytest.raises(ValueError, match=says):
        compare(arguments.pop("models"), CONFIG, **arguments)


def test_a_model_is_asked_in_the_form_of_its_own_template(tiny, monkeypatch):
    """No system prompt is put in front; options of the chat template are handed on."""
    asked = []

    def solve(texts, engine, config, **options):
        asked.append((texts, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("marco_fast.comparison.compare"), "solve", solve)
    options = {"enable_thinking": False}
    with pytest.raises(KeyboardInterrupt):
        compare([tiny], CONFIG, count=1, tests=("letters",), chat_template_kwargs=options)
    assert asked == [([QUESTION.text], {"chat_template_kwargs": options})]


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = Counter(), [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_hostile_text_as_text(tmp_path):
    comparison = by_hand((HOSTILE, "b$x$ & <b>"))
    question = comparison.asked["letters"][0]
    object.__setattr__(question, "text", HOSTILE)
    object.__setattr__(question, "answer", HOSTILE)
    comparison.answers["b$x$ & <b>"]["letters"][0] = answer(HOSTILE * 4, False)
    comparison.answers[HOSTILE]["letters"][0] = answer(HOSTILE, True)
    write_report(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags["script"] == page.tags["img"] == page.tags["b"] == 0
    assert page.text.count(HOSTILE) >= 6
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name.endswith(("src", "href")) and value]
    assert all(link.startswith("#") for link in links)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_page_has_every_question_and_both_answers(made, tmp_path):
    write_report(made, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    for test in ("letters", "facts"):
        for question in made.asked[test]:
            assert question.text in page.text
    for model in made.models:
        assert page.text.count("✓ right") == sum(made.share(m).right for m in made.models)
        assert model in page.text
    assert page.tags["svg"] == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_the_page_and_the_table_mark_unfinished_replies(tmp_path):
    comparison = by_hand()
    long = "So we count. " * 40
    comparison.answers["b"]["letters"] += [answer(long, True, final="3", finished=False)]
    write_report(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    words = " ".join(page.text.split())
    assert "✓ right 3 unfinishedconfidence 0.900 · 10 tokens" in words
    assert "✗ wrong 4 confidence 0.900 · support 50% · 50 tokens" in words
    assert words.count("%, 1 unfinished)") == 2  # of the test, and of all
    assert long.strip() in page.text
    console = Console(width=100, record=True)
    console.print(table(comparison))
    assert console.export_text().count("1 unfinished") == 1


def test_json_holds_what_the_page_shows():
    data = json.loads(json.dumps(to_dict(by_hand())))
    letters = data["tests"]["letters"]
    assert letters["shares"]["a"]["right"] == 1
    assert letters["questions"][0]["answers"]["a"]["text"] == "3"
    assert "b" not in letters["questions"][1]["answers"]
    assert data["curves"]["b"] == [[50.0, 0.0]]


def test_the_command_prints_a_table_and_writes_the_page(capsys, tmp_path, tiny):
    page = tmp_path / "report.html"
    options = ["--questions", "2", "--tests", "letters", "--expansions", "2"]
    code = main(["compare", "--models", "nano-marco", tiny, "--report", str(page), *options])
    captured = capsys.readouterr()
    assert code == 0
    assert "counting letters" in captured.out
    assert "/2 (" in captured.out
    assert max(map(len, captured.out.splitlines())) <= 80
    assert captured.err.splitlines()[-1] == f"wrote {page}"
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--questions", "0"], "expected at least 1 question per test"),
        (["--models", "nano-marco", "nowhere"], "nowhere"),
        (["--report", "/nowhere/report.html"], "expected --report in a folder that exists"),
        (["--expansions", "0"], "expected expansions"),
        (["--chat-template-kwargs", "[]"], "to be an object of JSON"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, says):
    defaults = ["--questions", "1", "--tests", "letters", "--expansions", "1"]
    assert main(["compare", *defaults, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("marco-fast compare: error: ")
    assert says in last


def test_an_interrupt_shows_what_was_done(capsys, monkeypatch, tiny):
    module = importlib.import_module("marco_fast.comparison.compare")
    real, calls = module._ask, []

    def ask(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "_ask", ask)
    options = ["--questions", "2", "--tests", "letters", "--expansions", "1"]
    assert main(["compare", "--models", "nano-marco", tiny, *options]) == 130
    captured = capsys.readouterr()
    assert "/2 (" in captured.out
    assert "interrupted" in captured.err
