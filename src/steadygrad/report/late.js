// Runs last: the words are painted first, then Plotly's five megabytes are compiled.
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
