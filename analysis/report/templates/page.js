// Tables sort by the raw numbers in data-value; unknown cells stay last in both directions.
document.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const th = button.closest("th"), table = th.closest("table"), body = table.tBodies[0];
  const column = [...th.parentNode.children].indexOf(th);
  const up = th.getAttribute("aria-sort") !== "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const x = key(a), y = key(b);
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, undefined, {numeric: true}) : x - y;
    return up ? order : -order;
  };
  [...body.rows].sort(compare).forEach((row) => body.append(row));
}));

// A run's own line or disc says which run it is: near the pointer, or where it is tapped.
const tip = document.getElementById("tip"), reach = [0, -4, 4, -8, 8];
let told = null;
const near = (x, y) => {
  for (const dy of reach) for (const dx of reach) {
    const run = document.elementFromPoint(x + dx, y + dy)?.closest("svg .run");
    if (run) return run;
  }
  return null;
};
const show = (event) => {
  const run = event.target.closest?.("figure") ? near(event.clientX, event.clientY) : null;
  if (run !== told) told?.classList.remove("told");
  told = run;
  tip.hidden = !run;
  if (!run) return;
  run.classList.add("told");
  tip.textContent = run.dataset.tip;
  const left = Math.min(event.pageX + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = Math.max(left, 4) + "px";
  tip.style.top = event.pageY + 14 + "px";
};
["pointermove", "pointerdown"].forEach((kind) => document.addEventListener(kind, show));
