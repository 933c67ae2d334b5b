"use strict";
// Pages within one file: the address after # names the page, or a place within one; without it the index is shown.
(() => {
  const pages = [...document.querySelectorAll("section.page")];
  const titles = new Map(pages.map((page) => [page, page.querySelector("h1")?.textContent || document.title]));
  const show = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)) || "index") || pages[0];
    const page = target.closest("section.page") || pages[0];
    const moved = page.hidden;
    for (const other of pages) other.hidden = other !== page;
    document.title = page.id === "index" ? "kwsbench report" : `${titles.get(page)} · kwsbench`;
    const main = page.querySelector("main");
    document.querySelector(".skip").setAttribute("href", `#${main.id}`);
    if (target !== page) target.scrollIntoView();
    else if (moved) window.scrollTo(0, 0);
  };
  window.addEventListener("hashchange", show);
  show();
})();
