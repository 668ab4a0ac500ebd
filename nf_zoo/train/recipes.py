"""The recipes that come with the package, by their names such as ``cifar10/eunnet20_cifar``.

They are the top-level folder configs/ of a checkout, which a wheel has as nf_zoo/configs.
"""

from functools import cache
from pathlib import Path

from ..errors import UserError, nearest
from ..files import refuse_special

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """The folder of the recipes: in the package, or beside it in a checkout and in an editable install."""
    inside = _PACKAGE / 'configs'
    return inside if inside.is_dir() else _PACKAGE.parent / 'configs'


@cache
def names() -> list[str]:
    """The names of all recipes, sorted; none where the package was installed without them."""
    files = sorted(folder().glob('*/*.yaml'))
    return [file.relative_to(folder()).as_posix().removesuffix('.yaml') for file in files]


def locate(recipe: str | Path) -> Path:
    """The file of a recipe that is given as a path or by its name.

    Raises:
        UserError: there is no such file, nor a recipe of this name; or it is a folder, a pipe or a device.
    """
    path, name = Path(recipe), str(recipe).removesuffix('.yaml').removeprefix('configs/')
    if not path.is_file() and name in names():
        return folder() / f'{name}.yaml'
    if not path.exists() and not path.is_symlink():
        hint = nearest(name, names())
        raise UserError(f"cannot read the recipe '{recipe}': no such file{hint or ' (`nf-zoo recipes` lists some)'}")
    refuse_special(path)
    return path
