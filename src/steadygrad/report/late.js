// Runs last: the words are painted first, then plotly.js is compiled.
requestAnimationFrame(function () {
  "use strict";
  setTimeout(function () {
    document.querySelectorAll("script.later").forEach(function (kept) {
      var script = document.createElement("script");
      script.textContent = kept.textContent;
      document.head.append(script);
    });
  }, 0);
});
