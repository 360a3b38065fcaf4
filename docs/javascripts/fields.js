// The page of fields: the search box shows the rows that hold its words, and an address such as #sale opens its table.
document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("find-field");
  if (!box) return;
  const blocks = [...document.querySelectorAll("details.fields")];
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().replaceAll("-", "_").split(/\s+/).filter(Boolean);
    for (const block of blocks) {
      let found = 0;
      for (const row of block.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase().replaceAll("-", "_");
        const fits = words.every((word) => text.includes(word));
        row.hidden = !fits;
        found += fits;
      }
      block.hidden = words.length > 0 && found === 0;
      block.open = words.length > 0 && found > 0;
    }
  });
  const open = () => {
    const block = location.hash && document.getElementById(location.hash.slice(1));
    if (block && block.matches("details.fields")) block.open = true;
  };
  addEventListener("hashchange", open);
  open();
});
