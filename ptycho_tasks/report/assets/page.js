beginTable();
beginViewer();
// On paper nothing can be opened; of hundreds, nobody wants all.
addEventListener("beforeprint", () => {
  for (const name of ["provenance", "provenance-list", "evidence-row"]) {
    const found = document.querySelectorAll(`details.${name}`);
    if (found.length <= 30) found.forEach((one) => { one.open = true; });
  }
});
