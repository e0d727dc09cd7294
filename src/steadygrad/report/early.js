// Runs before the first paint, so that a chosen theme does not flash the other one.
(function () {
  "use strict";
  var root = document.documentElement;
  var chosen = null;
  try { chosen = localStorage.getItem("steadygrad-theme"); } catch (error) { /* file:// may refuse */ }
  var dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "dark" : "light";
  root.classList.add("js");
})();
