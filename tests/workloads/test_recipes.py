"""Recipes: what is read out of them, and that a mistake is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from whimbrel.model.errors import BadInput
from whimbrel.workloads import catalogue
from whimbrel.workloads.builder import image_key, stage_keys
from whimbrel.workloads.packages import pinned
from whimbrel.workloads.recipe import load_recipe

GOOD = """
summary = "a test"
command = ["/usr/bin/busybox"]
ports = ["7000/tcp", "7000/udp"]
env = { PORT = "7000" }
[[layer]]
what = "something"
files = { "thing.sh" = "/srv/thing.sh" }
"""


def folder_with(tmp_path: Path, text: str, name: str = "thing") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "recipe.toml").write_text(text)
    (folder / "client.py").write_text("")
    (folder / "thing.sh").write_text("echo\n")
    return folder


def test_a_recipe_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(folder_with(tmp_path, GOOD))
    assert (recipe.name, recipe.port, recipe.udp) == ("thing", 7000, True)
    assert recipe.settings == {"PORT": "7000"}
    assert [layer.files for layer in recipe.layers] == [{"thing.sh": "/srv/thing.sh"}]


def test_a_variant_changes_what_it_says_and_keeps_the_rest(tmp_path: Path) -> None:
    folder_with(tmp_path, GOOD + "[client]\nRATE = '5'\n")
    variant = tmp_path / "other"
    variant.mkdir()
    text = 'summary = "x"\nextends = "thing"\nenv = { MORE = "1" }\noptions = { n = 3 }\n'
    (variant / "recipe.toml").write_text(text)
    recipe = load_recipe(variant)
    assert recipe.command == ("/usr/bin/busybox",)
    assert recipe.settings == {"PORT": "7000", "MORE": "1", "RATE": "5", "n": "3"}
    assert recipe.client_file == tmp_path / "thing" / "client.py"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("summary", "sumary"), "sumary"),
        (('"a test"', "3"), "summary"),
        (("summary", "= summary"), "recipe.toml: "),
        (('command = ["/usr/bin/busybox"]', ""), "command is missing"),
        (('"7000/tcp", "7000/udp"', '"7000/udp"'), "ports needs one like '7000/tcp'"),
        (('"7000/udp"', '"7000/sctp"'), "'7000/sctp' is not valid"),
        (("files = {", 'apt = ["x"]\nfiles = {'), "has apt and files"),
        (('files = { "thing.sh" = "/srv/thing.sh" }', ""), "has nothing"),
        (('"thing.sh" =', '"nothing.sh" ='), "there is no file 'nothing.sh'"),
        (('"thing.sh" =', '"../thing/thing.sh" ='), "there is no file '../thing/thing.sh'"),
        (('"/srv/thing.sh"', '"srv/thing.sh"'), "not an absolute path"),
        (('"/srv/thing.sh"', '"/srv/../../etc/passwd"'), "not an absolute path"),
        (("files =", 'keep = ["x"]\nfiles ='), "keep goes with apt"),
        (('files = { "thing.sh" = "/srv/thing.sh" }', 'apt = ["x"]\nkeep = ["/etc"]'), "without its first '/'"),
        (('summary = "a test"', 'summary = "a test"\nbase = ["cobol"]'), "'cobol', which is not in layers.toml"),
        (('summary = "a test"', 'summary = "a test"\nextends = "thing"'), "circle"),
        (('summary = "a test"', 'summary = "a test"\nextends = "nobody"'), "there is no"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_cause(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert change[0] in GOOD
    folder = folder_with(tmp_path, GOOD.replace(*change, 1))
    with pytest.raises(BadInput) as failure:
        load_recipe(folder)
    said = str(failure.value)
    assert complaint in said
    assert "recipe.toml" in said
    assert "\n" not in said


def test_two_recipes_that_extend_each_other_are_a_circle(tmp_path: Path) -> None:
    for name, other in (("one", "two"), ("two", "one")):
        folder_with(tmp_path, f'summary = "x"\nextends = "{other}"\n', name)
    with pytest.raises(BadInput, match="circle"):
        load_recipe(tmp_path / "one")


def test_what_is_missing_from_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no .*recipe.toml"):
        load_recipe(tmp_path / "absent")
    folder = folder_with(tmp_path, GOOD)
    (folder / "client.py").unlink()
    with pytest.raises(BadInput, match=r"client\.py is missing"):
        load_recipe(folder)


def test_a_folder_whose_name_is_none_for_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name the folder"):
        load_recipe(folder_with(tmp_path, GOOD, "Thing_1"))


def test_an_unknown_workload_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BadInput, match=r"'tetris': choose from blank, .*redis"):
        catalogue.find("tetris")


def test_a_package_that_is_not_locked_is_refused() -> None:
    with pytest.raises(BadInput, match=r"make lock"):
        pinned("left-pad")
    assert pinned("numpy").count("--hash=sha256:") > 10


@pytest.mark.parametrize("name", catalogue.names())
def test_every_workload_is_whole(name: str) -> None:
    recipe = catalogue.find(name)
    readme = (recipe.folder / "README.md").read_text()
    assert readme.startswith(f"# {name}")
    for layer in recipe.layers:
        for package in (*layer.pip, *layer.tools, *layer.sources):
            assert package in readme or layer.folder != recipe.folder, f"README does not say where {package} comes from"


def test_the_key_of_an_image_changes_with_what_it_is_made_of(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, GOOD)
    before = load_recipe(folder)
    (folder / "thing.sh").write_text("echo other\n")
    after = load_recipe(folder)
    assert stage_keys(before) == stage_keys(after), "keys are of the files as they are now"
    first = image_key(after)
    (folder / "thing.sh").write_text("echo third\n")
    assert image_key(after) != first
    (folder / "recipe.toml").write_text(GOOD.replace('PORT = "7000"', 'PORT = "7001"'))
    assert image_key(load_recipe(folder)) not in (first, image_key(after))


def test_images_share_the_layers_that_they_begin_with() -> None:
    keys = {name: stage_keys(catalogue.find(name)) for name in ("demo", "memory", "simple", "face", "objects")}
    assert keys["demo"] == keys["memory"]
    assert keys["simple"][0] == keys["memory"][0] == keys["face"][0]
    assert keys["face"][:4] == keys["objects"][:4]
    assert keys["face"][4] != keys["objects"][4]


def test_every_workload_is_in_the_documents() -> None:
    text = (Path(__file__).parents[2] / "docs/workloads.md").read_text()
    assert all(f"[{name}](../src/whimbrel/workloads/{name}/README.md)" in text for name in catalogue.names())
