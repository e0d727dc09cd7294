// The list of runs, kept as the server tells. What comes from a file is set as text, never as markup.
(function () {
  "use strict";
  var SVG = "http://www.w3.org/2000/svg";
  var root = document.documentElement, body = document.querySelector("tbody");
  var runs = {}, rows = {}, chosen = {}, shownAlerts = "";
  function by(id) { return document.getElementById(id); }

  function make(tag, text, kind) {
    var element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (kind) element.className = kind;
    return element;
  }
  function spark(run) {
    var svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    var logs = run.spark.map(function (v) { return v === null ? null : Math.log10(v); });
    var seen = logs.filter(function (v) { return v !== null; });
    var low = Math.min.apply(null, seen), span = Math.max(Math.max.apply(null, seen) - low, 0.1), pen = "M", d = "";
    logs.forEach(function (v, i) {
      if (v === null) { pen = "M"; return; }
      d += pen + (150 * i / Math.max(logs.length - 1, 1)).toFixed(1) + " " + (25 - 22 * (v - low) / span).toFixed(1);
      pen = "L";
    });
    svg.setAttribute("viewBox", "0 0 150 28");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", "gradient norm of " + run.name + " over its steps, log scale");
    path.setAttribute("d", d);
    svg.append(path);
    return svg;
  }
  function row(run) {
    var tr = make("tr"), name = make("th"), box = make("input"), first = make("td"), curve = make("td");
    box.type = "checkbox";
    box.checked = !!chosen[run.key];
    var readable = run.state !== "unreadable" && run.state !== "reading";
    box.disabled = !readable;
    box.setAttribute("aria-label", "Choose " + run.name);
    box.addEventListener("change", function () {
      if (box.checked) chosen[run.key] = true; else delete chosen[run.key];
      by("compare").disabled = Object.keys(chosen).length < 2;
    });
    first.append(box);
    name.scope = "row";
    if (!readable) name.textContent = run.name;
    else {
      var link = make("a", run.name);
      link.href = "/report?runs=" + run.key;
      name.append(link);
    }
    if (run.spark.length) curve.append(spark(run));
    var verdict = make("td"), said = run.sentence || "not judged yet";
    var begins = said.indexOf(run.word) === 0; // "Steady over 300 steps" is said once
    verdict.append(make("b", begins ? run.word : run.word + ". ", run.level), begins ? said.slice(run.word.length) : said);
    tr.append(first, name, make("td", run.state, run.state), make("td", run.policy), make("td", run.steps.toLocaleString("en")), curve, verdict);
    return tr;
  }
  function order(a, b) { return (b.started || 0) - (a.started || 0) || (a.name < b.name ? -1 : 1); }

  function options(id, names) {
    var select = by(id), was = select.value;
    var wanted = Array.from(new Set(names.filter(Boolean))).sort();
    if (wanted.join("\n") === select.dataset.names) return;
    select.dataset.names = wanted.join("\n");
    select.replaceChildren(new Option("all", ""));
    wanted.forEach(function (name) { select.append(new Option(name, name)); });
    select.value = wanted.indexOf(was) < 0 ? "" : was;
  }
  function filter() {
    var name = by("by-name").value.toLowerCase(), policy = by("by-policy").value, state = by("by-state").value, count = 0;
    Object.keys(runs).forEach(function (key) {
      var run = runs[key];
      var fits = run.name.toLowerCase().indexOf(name) >= 0 && (!policy || run.policy === policy) && (!state || run.state === state);
      rows[key].hidden = !fits;
      rows[key].style.display = fits ? "" : "none";
      count += fits;
    });
    var text = count + " of " + Object.keys(runs).length;
    if (by("count").textContent !== text) by("count").textContent = text;
  }
  function alerts(list) {
    var told = JSON.stringify(list), log = document.querySelector("#alerts ol");
    if (told === shownAlerts) return;
    shownAlerts = told;
    by("alerts").hidden = !list.length;
    log.replaceChildren.apply(log, list.slice().reverse().map(function (alert) {
      var item = make("li"), link = make("a", alert.name);
      link.href = "/report?runs=" + alert.key;
      item.append(make("b", alert.id + " ", alert.severity), link, (alert.step === null ? "" : " step " + alert.step) + ": " + alert.title);
      return item;
    }));
  }
  function take(news) {
    var present = new Set(news.keys);
    news.runs.forEach(function (run) {
      var fresh = row(run), old = rows[run.key], focus = old && old.contains(document.activeElement) && document.activeElement.tagName;
      if (old) old.replaceWith(fresh);
      if (focus) { var same = fresh.querySelector(focus); if (same) same.focus(); }
      runs[run.key] = run;
      rows[run.key] = fresh;
    });
    Object.keys(runs).forEach(function (key) {
      if (present.has(key)) return;
      rows[key].remove();
      delete runs[key]; delete rows[key]; delete chosen[key];
    });
    Object.values(runs).sort(order).forEach(function (run, i) {
      if (body.children[i] !== rows[run.key]) body.insertBefore(rows[run.key], body.children[i] || null);
    });
    options("by-policy", Object.values(runs).map(function (r) { return r.policy; }));
    options("by-state", Object.values(runs).map(function (r) { return r.state; }));
    by("compare").disabled = Object.keys(chosen).length < 2;
    alerts(news.alerts);
    filter();
    root.dataset.ready = "true";
  }
  ["by-name", "by-policy", "by-state"].forEach(function (id) { by(id).addEventListener("input", filter); });
  by("compare").addEventListener("click", function () { location.href = "/report?runs=" + Object.keys(chosen).join(","); });

  var stream = new EventSource("/events");
  stream.onopen = function () { runs = {}; rows = {}; body.replaceChildren(); by("live").textContent = "live"; };
  stream.onerror = function () { by("live").textContent = "not connected"; };
  stream.onmessage = function (event) { take(JSON.parse(event.data)); };
})();
