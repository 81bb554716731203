import torch
from PIL import Image

from sdpo_bench.testbed.animals import ANIMALS, PROMPTS_FILE, SPRITE_SETS, SPRITES, sprite_names
from sdpo_bench.testbed.data import MILD, WIDE, random_pictures, sprites


def test_prompts_are_the_45_animals() -> None:
    assert PROMPTS_FILE.read_text().split() == list(ANIMALS)
    assert len(set(ANIMALS)) == 45


def test_every_sprite_is_there_and_nothing_else() -> None:
    names = sprite_names()
    assert len(names) == 228
    assert {(p.parent.name, p.stem) for p in SPRITES.glob("*/*.png")} == set(names)
    for folder, stem in names:
        with Image.open(SPRITES / folder / f"{stem}.png") as image:
            assert image.size == (96, 96)
            assert image.mode == "RGBA"
    assert sum(p.stat().st_size for p in SPRITES.rglob("*") if p.is_file()) < 3_500_000


def test_every_set_has_its_licence() -> None:
    readme = (SPRITES / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in SPRITE_SETS)
    texts = {p.name: p.read_text() for p in (SPRITES / "LICENSES").iterdir()}
    assert "Attribution 4.0 International" in texts["CC-BY-4.0.txt"]
    assert "Apache License" in texts["Apache-2.0.txt"]
    assert "Microsoft" in texts["MIT-fluent.txt"]
    assert "Open Font License" in texts["OFL-1.1.txt"]


def test_pictures_follow_from_the_seed() -> None:
    for augmentation in (WIDE, MILD):
        first, classes = random_pictures(32, torch.Generator().manual_seed(3), augmentation)
        again, _ = random_pictures(32, torch.Generator().manual_seed(3), augmentation)
        other, _ = random_pictures(32, torch.Generator().manual_seed(4), augmentation)
        assert first.shape == (32, 3, 32, 32)
        assert first.min() >= 0
        assert first.max() <= 1
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert len(sprites()[1].unique()) == 45
    assert len(classes.unique()) > 10
