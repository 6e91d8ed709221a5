// The link to the other edition leads to the same place of the page, and the entry page remembers the choice.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("a.language").forEach((link) => link.addEventListener("click", () => {
    link.hash = location.hash;
    try { localStorage.setItem("edition", link.hreflang); } catch { /* storage is forbidden */ }
  }));
});
