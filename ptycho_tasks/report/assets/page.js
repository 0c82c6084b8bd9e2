beginTable();
beginViewer();
// On paper nothing can be opened; but of hundreds of parts, only who asks for them wants them all.
const MANY = 30;
let openedForPrint = [];
for (const [name, what] of [["provenance", "results"], ["evidence-row", "rows"]]) {
  const parts = [...document.querySelectorAll(`details.${name}`)];
  if (parts.length <= MANY) continue;
  const all = element("button", { type: "button" });
  const nameIt = () => { all.textContent = parts.every((one) => one.open) ? `Close all ${parts.length} ${what}` : `Open all ${parts.length} ${what}, also for print`; };
  all.addEventListener("click", () => { const open = !parts.every((one) => one.open); for (const one of parts) one.open = open; });
  for (const one of parts) one.addEventListener("toggle", nameIt);
  nameIt();
  parts[0].before(element("p", {}, all), element("p", { class: "note on-paper" }, `Of these ${parts.length} ${what}, those that are closed here were closed on the screen: open them, or all, before printing.`));
}
addEventListener("beforeprint", () => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  const isOfMany = (one) => ["provenance", "evidence-row"].some((name) => one.closest(`details.${name}`) && document.querySelectorAll(`details.${name}`).length > MANY);
  openedForPrint = closed.filter((one) => !isOfMany(one));
  openedForPrint.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => openedForPrint.forEach((one) => { one.open = false; }));
