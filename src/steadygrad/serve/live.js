// Keeps a served report as new as its run: the words are replaced, the charts move to their new
// places and are drawn again from the new figures, what was opened stays open.
(function () {
  "use strict";
  var status = document.getElementById("live"), busy = false, again = false;
  function key(plot) { return [plot.dataset.chart, plot.dataset.run, plot.dataset.part].join(); }
  function controls(main) { return Array.prototype.slice.call(main.querySelectorAll("a, button, summary, [tabindex]")); }

  function replace(page) {
    var main = document.getElementById("main"), fresh = document.importNode(page.getElementById("main"), true);
    var plots = {}, open = Array.prototype.map.call(main.querySelectorAll("details"), function (d) { return d.open; });
    var selected = Array.prototype.findIndex.call(main.querySelectorAll("[role=tab]"), function (t) { return t.tabIndex === 0; });
    var focus = controls(main).indexOf(document.activeElement), count = controls(main).length;
    main.querySelectorAll(".plot").forEach(function (plot) { plots[key(plot)] = plot; });
    fresh.querySelectorAll(".plot").forEach(function (plot) {
      var old = plots[key(plot)];
      if (!old) return;
      old.setAttribute("aria-label", plot.getAttribute("aria-label"));
      plot.replaceWith(old);
    });
    fresh.querySelectorAll("details").forEach(function (d, i) { d.open = !!open[i]; });
    fresh.querySelectorAll("[role=tab]").forEach(function (t, i) { t.tabIndex = i === Math.max(selected, 0) ? 0 : -1; });
    main.replaceChildren.apply(main, Array.prototype.slice.call(fresh.childNodes));
    document.getElementById("data").textContent = page.getElementById("data").textContent;
    var now = controls(main);
    if (focus >= 0 && now.length === count) now[focus].focus({ preventScroll: true });
    document.dispatchEvent(new Event("steadygrad-renewed"));
  }
  function renew() {
    if (busy) { again = true; return; }
    busy = true;
    fetch(location.href).then(function (answer) {
      if (!answer.ok) throw new Error("gone");
      return answer.text();
    }).then(function (text) {
      replace(new DOMParser().parseFromString(text, "text/html"));
      status.textContent = "live";
    }).catch(function () { status.textContent = "not to be read now"; }).then(function () {
      busy = false;
      if (again) { again = false; setTimeout(renew, 300); }
    });
  }
  var stream = new EventSource("/events?" + status.dataset.asks);
  stream.onopen = function () { status.textContent = "live"; };
  stream.onerror = function () { status.textContent = "not connected"; };
  stream.onmessage = renew;
})();
