"""The page that shows the API, in a real browser."""

import shutil

import pytest
from playwright.sync_api import sync_playwright

from tests.serving import Server

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed on this machine")
def test_the_page_shows_every_operation_from_local_files_alone(server: Server) -> None:
    paths = server.request("GET", "/api/openapi.json").json["paths"]
    with sync_playwright() as playwright:
        # Containers run tests as root, where the browser's own sandbox does not start.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        requested: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{server.url}/api/docs")
        page.wait_for_selector(".opblock")
        assert page.locator(".opblock").count() == sum(len(methods) for methods in paths.values())
        browser.close()
    assert problems == []
    assert all(url.startswith((server.url, "data:")) for url in requested)
