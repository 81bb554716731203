"""Development-time step: render the emoji to 96 px PNGs. Not needed to rebuild the model: the PNGs are committed.

Inputs: Noto Color Emoji (Debian package fonts-noto-color-emoji) and three unpacked npm packages
(`npm pack @lobehub/fluent-emoji-3d@1.1.0` and so on; versions in sprites/README.md); needs `resvg-py`.

    python -m sdpo_bench.testbed.fetch_sprites --noto NotoColorEmoji.ttf --fluent-3d DIR --fluent-flat DIR --twemoji DIR
"""

import argparse
import io
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sdpo_bench.testbed.animals import CODE_POINTS, SPRITES

SIDE = 96  # pixels
NOTO_SIZE = 109  # the only bitmap size of the Noto font


def _square(image: Image.Image) -> Image.Image:
    """RGBA image fitted into a transparent SIDE x SIDE square, aspect kept."""
    box = image.getbbox()
    if box is None:
        raise ValueError("empty sprite")
    image = image.crop(box)
    scale = (SIDE - 4) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Resize with premultiplied alpha, otherwise the colour of transparent pixels bleeds into the edges.
    image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(image, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return square


def _svg(svg: str) -> Image.Image:
    import resvg_py

    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * SIDE, height=4 * SIDE))
    return Image.open(io.BytesIO(data)).convert("RGBA")


def _noto(font: ImageFont.FreeTypeFont, code: int) -> Image.Image:
    image = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(image).text((10, 10), chr(code), font=font, embedded_color=True)
    return image


def _first(folder: Path, names: list[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"none of {names} in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--noto", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--fluent-3d", type=Path, required=True, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--fluent-flat", type=Path, required=True, help="unpacked @iconify-json/fluent-emoji-flat")
    parser.add_argument("--twemoji", type=Path, required=True, help="unpacked @twemoji/svg")
    parser.add_argument("--out", type=Path, default=SPRITES)
    args = parser.parse_args()
    font = ImageFont.truetype(str(args.noto), NOTO_SIZE)
    icons = json.loads((args.fluent_flat / "icons.json").read_text())["icons"]
    chars = json.loads((args.fluent_flat / "chars.json").read_text())
    for animal, codes in CODE_POINTS.items():
        for i, code in enumerate(codes):
            stem = animal if i == 0 else f"{animal}_{i + 1}"
            hexa = f"{code:x}"
            key = next(k for k in (hexa, f"{hexa}-fe0f") if k in chars)
            body = icons[chars[key]]["body"]
            images = {
                "noto": _noto(font, code),
                "fluent_3d": Image.open(
                    _first(args.fluent_3d / "assets", [f"{hexa}.webp", f"{hexa}-fe0f.webp"])
                ).convert("RGBA"),
                "fluent_flat": _svg(
                    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 32 32">{body}</svg>'
                ),
                "twemoji": _svg(_first(args.twemoji, [f"{hexa}.svg", f"{hexa}-fe0f.svg"]).read_text()),
            }
            for name, image in images.items():
                target = args.out / name / f"{stem}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                _square(image).save(target, optimize=True)


if __name__ == "__main__":
    main()
