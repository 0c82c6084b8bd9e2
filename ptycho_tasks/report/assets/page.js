beginTable();
beginViewer();
// On paper nothing can be opened; of hundreds, nobody wants all.
let openedForPrint = [];
addEventListener("beforeprint", () => {
  const closed = [...document.querySelectorAll("details:not([open])")];
  const isOfMany = (one) => ["provenance", "evidence-row"].some((name) => one.closest(`details.${name}`) && document.querySelectorAll(`details.${name}`).length > 30);
  openedForPrint = closed.filter((one) => !isOfMany(one));
  openedForPrint.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => openedForPrint.forEach((one) => { one.open = false; }));
