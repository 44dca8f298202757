"""What the browser tests of several rooms wait for."""


def wait_for(page, text: str) -> None:
    """Wait until a widget's line of words holds a text."""
    page.wait_for_function(
        "t => [...document.querySelectorAll('[aria-live]')].some(e => e.textContent.includes(t))", arg=text
    )
