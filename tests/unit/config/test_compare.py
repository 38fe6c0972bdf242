from dataclasses import dataclass, replace

from spot_ray.config.compare import differing_fields


@dataclass(frozen=True)
class Inner:
    size: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    recipe: str = "one"
    inner: Inner | None = Inner()


def test_differing_fields_are_dotted_paths() -> None:
    one = Outer()
    assert differing_fields(one, Outer()) == []
    assert differing_fields(one, replace(one, recipe="other", inner=Inner(size=2))) == ["recipe", "inner.size"]
    assert differing_fields(one, replace(one, inner=None)) == ["inner"]
