"""The page of a comparison: one file that needs no other, and what a browser makes of it."""

import json
import re
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from chromium import BROWSER
from matplotlib.figure import Figure
from PIL import Image
from run_folders import write_run
from stated import stated

from rl_lab.core.comparing import figures, page
from rl_lab.core.comparing.compare import analyse

compare = stated("command/rl/compare")


class Tags(HTMLParser):
    """What a page holds; raises where tags do not close as they opened."""

    EMPTY = {"meta", "link", "img", "path", "use", "rect", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.found, self.ids, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def study(folder, tasks=("A", "B"), agents=("dqn", "a2c", "ppo")):
    rng = np.random.default_rng(0)
    for i, agent in enumerate(agents):
        for task in tasks:
            for seed in range(3):
                values = np.linspace(0, 10 - i, 6) + rng.normal(size=6)
                write_run(folder / agent / task / str(seed), values.tolist(), name=f"{agent}_{task.lower()}", seed=seed,
                          choices={"agent": agent, "env": "gym"}, top={"env": {"id": task}}, units=i)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    compare([study(folder / "runs")], out=folder / "out", resamples=50)
    return folder / "out/index.html"


def test_the_page_needs_no_other_file(several):
    text = several.read_text()
    for _, attributes in Tags(text).found:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search(r"@import|url\((?!#)", text)


def test_pictures_take_their_colours_from_the_page_and_keep_out_of_each_others_way(several):
    tags = Tags(several.read_text())
    assert len(tags.ids) == len(set(tags.ids))
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', several.read_text()))
    assert used <= set(tags.ids) and len(used) > 10
    svg = "".join(re.findall("<figure><svg.*?</svg>", several.read_text(), re.DOTALL))
    assert svg.count("var(--c0)") > 5 and svg.count("currentColor") > 5 and "<metadata>" not in svg
    assert not re.search("#(0072b2|222222|ffffff)", svg)


def test_tables_have_a_row_for_each_group_task_and_run(several):
    text = several.read_text()
    tables = {kind: body.count("<tr>") for kind, body in
              re.findall(r'<table class="(?:sortable )?(\w+)">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)}  # fmt: skip
    assert tables == {"aggregates": 3, "pairwise": 3, "scores": 6, "settings": 1, "runs": 18}
    assert len(re.findall("<figure>", text)) == 4 + 2 + 2  # aggregates, distributions, tasks
    assert text.index('data-group="0"') < text.index('data-group="1"') < text.index('data-group="2"')


def test_the_page_says_what_its_intervals_are_and_where_its_runs_lie(several):
    words = "".join(Tags(several.read_text()).words)
    for part in ("95 % bootstrap interval, runs drawn with replacement within each task", "a tie counts half",
                 "the fraction of runs that end above each score", "agent.units", "3 groups, 3 seeds each, 18 runs",
                 str(several.parents[1] / "runs/ppo/B/2")):  # fmt: skip
        assert part in words


def test_one_task_has_its_curves_over_steps_and_seconds(tmp_path):
    compare([study(tmp_path / "runs", tasks=("A",))], out=tmp_path / "out", resamples=50)
    text = (tmp_path / "out/index.html").read_text()
    assert len(re.findall("<figure>", text)) == 1 + 2 + 1  # scores, curves, distribution
    assert "over steps" in text and "over seconds" in text and "Over all tasks" not in text
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:4] == ["Groups, best first", "Scores", "Learning curves", "Distribution of final scores"]
    assert "eval/return, higher is better" in text


def test_every_seed_is_a_point_beside_its_groups_score(tmp_path):
    results, _ = analyse([study(tmp_path / "runs", tasks=("A",))], resamples=50)
    axes = Figure().subplots()
    figures.scores(axes, results, "A")
    points = [line for line in axes.lines if line.get_marker() == "o"]
    finals = [float(run.curves["eval/return"].values[-1]) for run in results.runs]
    assert sorted(float(line.get_xdata()[0]) for line in points) == sorted(finals) and len(finals) == 9
    assert [label.get_text() for label in axes.get_yticklabels()] == results.groups


@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0, 1, 2, 3], (0, 3)),
        ([0.1, 0.2, 0.3, *[0.99, 0.991, 0.992] * 3], (0.1, 0.992)),  # far below the others, and still to be seen
        ([-16.2, -4.9, 0.75, 0.97, 0.98, 0.99, 0.56, 0.6, 0.65, 0.47, 0.5, 0.53], (0.47, 0.99)),
        ([5.0], (5, 5)),
        ([float("nan")], (0, 1)),
    ],
)
def test_an_outlier_does_not_squash_a_panel(values, ends):
    assert figures.edges(values) == ends


def test_what_lies_past_the_edge_is_marked_with_its_number(tmp_path):
    for agent, final in (("dqn", -1e6), ("a2c", 1.0), ("ppo", 2.0), ("pqn", 3.0), ("vpn", 4.0)):
        for seed in range(3):
            write_run(tmp_path / "runs" / agent / str(seed), (0.0, final + 0.1 * seed), name=agent, seed=seed,
                      choices={"agent": agent, "env": "a"})  # fmt: skip
    results, _ = analyse([tmp_path / "runs"], resamples=50)
    axes, curve = Figure().subplots(1, 2)
    figures.scores(axes, results, next(iter(results.tasks)))
    assert [text.get_text() for text in axes.texts] == ["\u25c2 -1,000,000"] and axes.get_xlim()[0] > 0
    figures.learning(curve, results, next(iter(results.tasks)), "steps")
    assert -10 < curve.get_ylim()[0] < 0 < 4 < curve.get_ylim()[1] < 10


def test_one_value_alone_is_seen_from_zero(tmp_path):
    write_run(tmp_path / "runs/a", [195.0, 195.0])
    results, _ = analyse([tmp_path / "runs"], resamples=50)
    axes, curve = Figure().subplots(1, 2)
    figures.scores(axes, results, next(iter(results.tasks)))
    figures.learning(curve, results, next(iter(results.tasks)), "steps")
    for low, high in (axes.get_xlim(), curve.get_ylim()):
        assert -20 < low < 0 and 195 < high < 220


def test_one_run_is_not_one_runs(tmp_path):
    for agent, task, seed in (("dqn", "A", 0), ("a2c", "A", 0), ("a2c", "B", 0), ("a2c", "B", 1)):
        write_run(tmp_path / "runs" / agent / f"{task}{seed}", name=f"{agent}_{task.lower()}", seed=seed,
                  choices={"agent": agent, "env": "gym"}, top={"env": {"id": task}})  # fmt: skip
    results, notes = analyse([tmp_path / "runs"], resamples=50)
    labels = [text.get_text() for text in figures.curves(results).legends[0].get_texts()]
    assert {"dqn_a (1 run)", "a2c (3 runs)"} <= {*labels}
    assert "a2c: aggregates take the first 1 seed of each task, as many as every task has." in notes


def test_names_are_text_not_tags(tmp_path):
    write_run(tmp_path / "runs/a", name="<script>alert(1)</script>&")
    compare([tmp_path / "runs"], out=tmp_path / "out", resamples=50)
    text = (tmp_path / "out/index.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in text


def test_the_same_runs_make_the_same_page(several, tmp_path):
    compare([several.parents[1] / "runs"], out=tmp_path / "out", resamples=50)
    assert (tmp_path / "out/index.html").read_text() == several.read_text()


# -- in a browser

CHECK = """<pre id="found"></pre><script>
const found = {}, frames = [1280, 390].map(width => {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: "index.html", width, height: 900});
  document.body.append(frame);
  return new Promise(loaded => frame.onload = () => loaded([width, frame.contentWindow]));
});
Promise.all(frames).then(windows => {
  for (const [width, {document: page}] of windows) {
    const all = selector => [...page.querySelectorAll(selector)], box = item => item.getBoundingClientRect();
    const head = all(".aggregates th")[1];
    const order = () => all(".aggregates tbody tr").map(row => row.cells[0].dataset.value).join("");
    const sorted = []; for (let i = 0; i < 2; i++) { head.click(); sorted.push(order()); }
    all(".legend button")[1].click();
    found[width] = {
      overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth, rows: all(".aggregates tbody tr").length,
      images: all("img").map(image => image.naturalWidth), sorted,
      figures: all("figure svg").map(svg => Math.round(box(svg).width)),
      flat: all("figure svg").filter(svg => box(svg).height < 80).length,
      faded: all("figure svg [class*=group-]").filter(mark => !mark.classList.contains("focused")).length,
      lit: all("figure svg .focused").length,
    };
  }
  document.querySelector("#found").textContent = JSON.stringify(found);
});
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium on the path")
def test_a_browser_shows_it_on_a_desk_and_on_a_phone(several, tmp_path):
    folder = several.parent
    Image.new("RGB", (40, 30), "red").save(tmp_path / "sheet.png")
    text = several.read_text().replace("<script>", page.image(tmp_path / "sheet.png", "a sheet") + "<script>", 1)
    (folder / "browser").mkdir(exist_ok=True)
    (folder / "browser/index.html").write_text(text)
    (folder / "browser/check.html").write_text(CHECK)
    asked = []

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=folder / "browser"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,1000",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom",
         f"http://127.0.0.1:{server.server_port}/check.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    found = json.loads(re.search('<pre id="found">(.*?)</pre>', done.stdout)[1])
    assert not re.findall("CONSOLE.*", done.stderr)
    assert set(asked) <= {"/check.html", "/index.html", "/favicon.ico"}
    for width in ("1280", "390"):
        seen = found[width]
        assert (seen["overflow"], seen["rows"], seen["images"], seen["flat"]) == (0, 3, [40], 0)
        assert seen["sorted"] == ["210", "012"]  # by IQM, rising and falling
        assert len(seen["figures"]) == 8 and min(seen["figures"]) > 220
        assert seen["lit"] > 10 and seen["faded"] == pytest.approx(2 * seen["lit"], rel=0.2)
    assert max(found["390"]["figures"]) <= 350
