"""The page "Regularization" in a browser, as a person uses it."""

import json
from urllib.parse import quote

NAME = "lightning_reg_page"
SECONDS = 300  # at most, because the machine may be busy

# A picture is there when every card has an answer and nothing is being read.
_AT_REST = """
const bar = document.querySelector('.status');
return Boolean(bar && bar.dataset.kind && !bar.hasAttribute('data-busy') && !document.querySelector('.waiting'));
"""
_SETTLED = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0)));"
_PIXELS = """
const [run, row, column, rows, columns] = arguments;
const canvas = document.querySelector(`.heatmap[data-run="${run}"] canvas`);
const [width, height] = [canvas.width / columns, canvas.height / rows];
const left = Math.ceil(column * width);
const top = Math.min(Math.ceil(row * height), canvas.height - 1);
const size = [Math.max(1, Math.floor(width) - 1), Math.max(1, Math.floor(height) - 1)];
return [...canvas.getContext('2d').getImageData(left, top, ...size).data];
"""


class Page:
    """The tab in one TensorBoard."""

    def __init__(self, browser, url: str) -> None:
        self.browser = browser
        self.url = url

    def address(self, **view: str) -> str:
        return f"{self.url}/#{NAME}" + "".join(f"&reg.{name}={quote(value, safe='')}" for name, value in view.items())

    def load(self, address: str) -> None:
        """Load TensorBoard anew at an address of this tab."""
        self.browser.switch_to.default_content()
        self.browser.get("about:blank")
        self.browser.get_log("browser")  # what pages before this one have said, perhaps of a server that is gone
        self.browser.get(address)
        self.enter()

    def enter(self) -> None:
        self.browser.switch_to.default_content()
        self.until("return document.querySelector('iframe')")
        self.browser.switch_to.frame(self.browser.find_element("css selector", "iframe"))
        self.settle()

    def open(self, **view: str) -> None:
        """Show a view, as if its link had been entered; loads TensorBoard only if it is not there yet."""
        self.browser.switch_to.default_content()
        if not self.browser.current_url.startswith(f"{self.url}/#{NAME}"):
            return self.load(self.address(**view))
        self.browser.execute_script("location.hash = arguments[0]", self.address(**view).partition("#")[2])
        return self.enter()

    def run(self, script: str, *arguments):
        return self.browser.execute_script(script, *arguments)

    def until(self, script: str, *arguments):
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, SECONDS, 0.1).until(lambda _: self.run(script, *arguments))

    def settle(self) -> None:
        """Wait until everything has been read and drawn."""
        self.browser.execute_async_script(_SETTLED)
        self.until(_AT_REST)
        self.browser.execute_async_script(_SETTLED)

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def choose(self, name: str, value: str) -> None:
        self.click(f'input[name="{name}"][value="{value}"]')

    def type(self, selector: str, text: str) -> None:
        field = self.browser.find_element("css selector", selector)
        field.clear()
        field.send_keys(text)
        self.settle()

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()

    def texts(self, selector: str) -> list[str]:
        return self.run("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def runs(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('.heatmap')].map(card => card.dataset.run)")

    def layers(self, run: str) -> list[str]:
        return self.run(
            "return [...document.querySelectorAll('.heatmap')].find(card => card.dataset.run === arguments[0])"
            ".querySelectorAll('.layer').values().map(node => node.title).toArray()",
            run,
        )

    def colours(self, run: str, row: int, column: int, shape: tuple[int, int]) -> set[tuple[int, ...]]:
        """Return the colours (red, green, blue, opacity) within a cell of a heatmap of `shape`."""
        flat = self.run(_PIXELS, run, row, column, *shape)
        return {tuple(flat[start : start + 4]) for start in range(0, len(flat), 4)}

    def point(self, run: str, row: int, column: int, shape: tuple[int, int], *, click: bool = False) -> str:
        """Move the pointer to a cell; return what the tooltip says."""
        from selenium.webdriver import ActionChains

        canvas = self.browser.find_element("css selector", f'.heatmap[data-run="{run}"] canvas')
        self.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
        size = canvas.size
        right = (column + 0.5) / shape[1] * size["width"] - size["width"] / 2
        down = (row + 0.5) / shape[0] * size["height"] - size["height"] / 2
        actions = ActionChains(self.browser, duration=0).move_to_element_with_offset(canvas, int(right), int(down))
        (actions.click() if click else actions).perform()
        if click:
            self.settle()
        return self.run("return document.querySelector('.tooltip').innerText")

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return self.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def link(self) -> str:
        """Return the address that the browser shows."""
        self.browser.switch_to.default_content()
        address = self.browser.current_url
        self.enter()
        return address

    def errors(self) -> list[str]:
        """Return what the console has called an error since it was last asked."""
        return [json.dumps(entry) for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
