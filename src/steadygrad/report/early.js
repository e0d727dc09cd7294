// Runs before the first paint, so that a chosen theme does not flash the other one; then the button
// that changes it. Charts are drawn again by whoever hears of steadygrad-theme.
(function () {
  "use strict";
  var root = document.documentElement;
  var chosen = null;
  try { chosen = localStorage.getItem("steadygrad-theme"); } catch (error) { /* file:// may refuse */ }
  var dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  function show(name) {
    var button = document.getElementById("theme");
    root.dataset.theme = name;
    if (button) button.setAttribute("aria-pressed", String(name === "dark"));
  }
  show(dark ? "dark" : "light");
  root.classList.add("js");
  window.steadygradShowTheme = show;
  addEventListener("DOMContentLoaded", function () {
    show(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", function () {
      var name = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("steadygrad-theme", name); } catch (error) { /* file:// may refuse */ }
      show(name);
      document.dispatchEvent(new Event("steadygrad-theme"));
    });
  });
})();
