"use strict";
// A token is chosen by pointing, tapping or the arrow keys; what it is stands below its window.
(() => {
  const tokensOf = (window) => [...window.querySelectorAll(".tokens i")];

  const tell = (token) => {
    const window = token.closest(".window");
    const document_ = token.closest(".document");
    const tokens = token.parentElement;
    const place = Number(tokens.dataset.position) + [...tokens.children].indexOf(token);
    const facts = [...document_.querySelectorAll(".fact bdi")].map((fact) => fact.textContent);
    const readout = window.querySelector(".readout");
    readout.hidden = false;
    readout.textContent = `id ${token.dataset.id}: \u201c${token.textContent.replace(/\n/g, "")}\u201d \u00b7 position ${place} \u00b7 ${facts.join(" \u00b7 ")}`;
  };

  // One token of a window is in the order of the Tab key.
  const choose = (token) => {
    for (const other of token.closest(".window").querySelectorAll('.tokens i[tabindex="0"]')) other.tabIndex = -1;
    token.tabIndex = 0;
  };

  // The token of the next line above or below that is nearest to the middle of this one.
  const onLine = (tokens, token, step) => {
    const from = token.getClientRects()[0];
    let best = null;
    let line = null;
    for (let at = tokens.indexOf(token) + step; at >= 0 && at < tokens.length; at += step) {
      const box = tokens[at].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < 4) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) >= 4) break;
      const away = Math.abs(box.left + box.width / 2 - from.left - from.width / 2);
      if (best === null || away < best.away) best = { away, token: tokens[at] };
    }
    return best ? best.token : token;
  };

  for (const window of document.querySelectorAll(".window")) {
    tokensOf(window).forEach((token, at) => { token.tabIndex = at ? -1 : 0; });
    window.addEventListener("focusin", (event) => {
      const token = event.target.closest(".tokens i");
      if (!token) return;
      choose(token);
      tell(token);
    });
    window.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".tokens i");
      if (token && event.pointerType === "mouse") tell(token);
    });
    window.addEventListener("keydown", (event) => {
      const token = event.target.closest(".tokens i");
      if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
      const tokens = tokensOf(window);
      const at = tokens.indexOf(token);
      const moves = {
        ArrowRight: () => tokens[at + 1],
        ArrowLeft: () => tokens[at - 1],
        ArrowDown: () => onLine(tokens, token, 1),
        ArrowUp: () => onLine(tokens, token, -1),
        Home: () => tokens[0],
        End: () => tokens[tokens.length - 1],
        Escape: () => window.querySelector("summary"),
      };
      if (!Object.hasOwn(moves, event.key)) return;
      event.preventDefault();
      const next = moves[event.key]();
      if (next) next.focus();
    });
  }

  // A link to a window opens it.
  const open = () => {
    const there = document.getElementById(location.hash.slice(1));
    if (there && there.matches("details")) there.open = true;
  };
  addEventListener("hashchange", open);
  open();
})();
