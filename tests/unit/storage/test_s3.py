"""What the environment and AWS's files make of a client for `s3://`; no server is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from spot_ray.storage import s3

CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")


@pytest.fixture(autouse=True)
def profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Take all of AWS out of the environment, and return the file that its configuration is read from."""
    for name, _ in s3.environment():
        monkeypatch.delenv(name)
    file = tmp_path / "config"
    file.touch()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return file


def test_amazons_own_store_is_asked_as_its_tools_ask_it() -> None:
    client = s3.client()
    assert client.endpoint_url is None
    assert not set(CHECKSUMS) & set(client.config_kwargs)


@pytest.mark.parametrize(
    ("variables", "text", "endpoint"),
    [
        ({"AWS_ENDPOINT_URL": "http://a"}, "", "http://a"),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}, "", "http://b"),
        ({}, "[default]\nendpoint_url = http://c\n", "http://c"),
        (
            {"AWS_PROFILE": "x"},
            "[profile x]\nservices = y\n[services y]\ns3 =\n  endpoint_url = http://d\n",
            "http://d",
        ),
        ({"AWS_ENDPOINT_URL": "http://a"}, "[default]\nendpoint_url = http://c\n", "http://a"),
        ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true", "AWS_ENDPOINT_URL": "http://a"}, "", None),
    ],
)
def test_the_endpoint_comes_from_where_amazon_says(
    variables: dict[str, str], text: str, endpoint: str | None, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile.write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert s3.client().endpoint_url == endpoint


def test_checksums_are_left_out_at_other_endpoints_unless_asked_for(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://a")
    both = dict.fromkeys(CHECKSUMS, "when_required")
    assert both.items() <= s3.client().config_kwargs.items()
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert [name in s3.client().config_kwargs for name in CHECKSUMS] == [False, True]
    profile.write_text("[default]\nresponse_checksum_validation = when_supported\n")
    assert [name in s3.client().config_kwargs for name in CHECKSUMS] == [False, False]


def test_attempts_are_bounded_and_the_users_number_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3.client().config_kwargs["retries"]["total_max_attempts"] == s3.ATTEMPTS
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    assert s3.client().config_kwargs["retries"]["total_max_attempts"] == 9
