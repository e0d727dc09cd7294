// Draws the charts from the JSON in #data. Colours come from the style sheet, so that a theme has
// one home; everything that came from a run is escaped before it reaches Plotly, which reads a
// subset of HTML in its labels.
(function () {
  "use strict";
  var report = JSON.parse(document.getElementById("data").textContent);
  var root = document.documentElement;
  var narrow = matchMedia("(max-width: 760px)");
  var CONFIG = { displaylogo: false, displayModeBar: false, responsive: false, doubleClick: "reset" };
  var MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  var LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

  function colour(name) { return getComputedStyle(root).getPropertyValue("--" + name).trim(); }
  function alpha(hex, a) {
    var n = parseInt(hex.slice(1), 16);
    return "rgba(" + (n >> 16) + "," + ((n >> 8) & 255) + "," + (n & 255) + "," + a + ")";
  }
  function escape(text) {
    return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }
  function figure(v) {
    if (v === null || v === undefined) return "–";
    var a = Math.abs(v);
    if (a !== 0 && (a < 1e-3 || a >= 1e6)) return v.toExponential(2);
    return a >= 1e3 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3));
  }
  function finite(values) { return values.filter(function (v) { return v !== null && isFinite(v); }); }
  function lowest(values) { return values.reduce(function (a, b) { return Math.min(a, b); }, Infinity); }
  function highest(values) { return values.reduce(function (a, b) { return Math.max(a, b); }, -Infinity); }
  function least(values, share) {
    var sorted = values.slice().sort(function (a, b) { return a - b; });
    return sorted[Math.max(0, Math.min(sorted.length - 1, Math.round(share * (sorted.length - 1))))];
  }
  function plural(n, word) { return n.toLocaleString("en") + " " + word + (n === 1 ? "" : "s"); }

  // ---- axes ------------------------------------------------------------------------------

  function base(element, height, left) {
    return {
      width: element.clientWidth, height: height,
      margin: { l: left, r: narrow.matches ? 10 : 18, t: 8, b: 34 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 12, color: colour("muted") },
      hoverlabel: { bgcolor: colour("surface"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12.5 }, align: "left" },
      showlegend: false, annotations: [], shapes: [], uirevision: "kept",
      dragmode: narrow.matches ? false : "zoom"
    };
  }
  function axis(extra) {
    return Object.assign({
      gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false,
      ticks: "", automargin: false, ticklabeloverflow: "allow", fixedrange: true
    }, extra);
  }
  // Round powers of ten where there are some, else 1-2-5 steps: Plotly's own minor labels crowd.
  function logTicks(low, high) {
    var ticks = [], first = Math.floor(low), last = Math.ceil(high);
    var stride = Math.max(1, Math.ceil((last - first) / 6));
    var mantissas = high - low > 2.8 ? [1] : high - low > 0.9 ? [1, 3] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    for (var e = first; e <= last; e += stride) {
      mantissas.forEach(function (m) {
        var at = e + Math.log10(m);
        if (at >= low - 1e-9 && at <= high + 1e-9) ticks.push({ at: at, text: power(e, m) });
      });
    }
    return ticks;
  }
  function power(e, m) {
    if (e >= -3 && e <= 4) return +(m * Math.pow(10, e)).toPrecision(2) + "";
    return (m === 1 ? "" : m + "×") + "10<sup>" + e + "</sup>";
  }
  function logAxis(low, high, extra) {
    var ticks = logTicks(low, high);
    return axis(Object.assign({
      type: "log", range: [low, high], tickmode: "array",
      tickvals: ticks.map(function (t) { return Math.pow(10, t.at); }), ticktext: ticks.map(function (t) { return t.text; })
    }, extra));
  }
  // A y axis over values: log where they span over a decade and a bit and none is zero or below.
  // What towers over all the rest would flatten it: such values leave the panel at its top.
  function valueAxis(values, forceLog, extra) {
    var seen = finite(values), low = lowest(seen), peak = highest(seen), usual = seen.length ? least(seen, 0.98) : 1;
    if (!seen.length) { low = 0; peak = 1; forceLog = false; }
    var ceiling = forceLog ? 3000 * usual : usual + 8 * (usual - low), high = Math.min(peak, ceiling);
    if (!forceLog && high < peak) high = usual + 0.3 * (usual - low);
    var made;
    if (forceLog || (low > 0 && high / low > 15)) {
      var a = Math.log10(low), b = Math.log10(high), pad = Math.max(0.04 * (b - a), 0.06);
      made = { axis: logAxis(a - pad, b + 2 * pad, extra), top: Math.pow(10, b + pad) };
    } else {
      var room = (high - low || Math.abs(high) || 1) * 0.06;
      made = { axis: axis(Object.assign({ range: [low - room, high + 2 * room], nticks: 5 }, extra)), top: high + room };
    }
    made.ceiling = high < peak ? high : Infinity;
    return made;
  }
  // The highest value of a curve that leaves its panel, told beside the place where it does.
  function tower(layout, curve, range, yref, tint) {
    var best = -1;
    curve.value.forEach(function (v, i) {
      if (v !== null && v > range.ceiling && (best < 0 || v > curve.value[best])) best = i;
    });
    if (best < 0) return;
    var right = curve.step[best] < (curve.step[0] + curve.step[curve.step.length - 1]) / 2;
    layout.annotations.push({
      xref: "x", x: curve.step[best], yref: yref, y: range.axis.type === "log" ? Math.log10(range.top) : range.top, yanchor: "top",
      xanchor: right ? "left" : "right", xshift: right ? 5 : -5, yshift: -7, showarrow: false, text: "↑ " + power10(curve.value[best]), font: { size: 11.5, color: tint }
    });
  }
  function power10(v) {
    var parts = v.toExponential(1).split("e");
    return Math.abs(+parts[1]) < 5 ? figure(v) : parts[0] + "×10<sup>" + +parts[1] + "</sup>";
  }
  function title(layout, text, y) {
    layout.annotations.push({
      text: text, xref: "paper", yref: "paper", x: 0, y: y, xanchor: "left", yanchor: "bottom",
      showarrow: false, font: { size: 12.5, color: colour("ink") }
    });
  }

  // ---- panels one above the other, sharing the steps ------------------------------------------

  // Heights in pixels, from the top; gives each panel's domain and the whole height.
  function stack(heights, badges) {
    var gap = 34, top = badges ? 48 : 26, bottom = 34, total = top + bottom, domains = [], y;
    heights.forEach(function (h, i) { total += h + (i ? (h < 100 && i ? 14 : gap) : 0); });
    var inner = total - 8 - bottom;
    y = inner - (top - 8);
    heights.forEach(function (h, i) {
      if (i) y -= h < 100 ? 14 : gap;
      domains.push([Math.max(0, (y - h) / inner), Math.min(1, y / inner)]);
      y -= h;
    });
    return { domains: domains, height: total };
  }
  function stepAxis(series) {
    var all = [];
    series.forEach(function (s) { all = all.concat(s.norm.step.slice(0, 1), s.norm.step.slice(-1)); });
    var low = lowest(all), high = highest(all), pad = Math.max((high - low) * 0.008, 0.5);
    return axis({ range: [low - pad, high + pad], fixedrange: narrow.matches, showgrid: false, anchor: "free", position: 0, tickformat: ",d", title: { text: "step", standoff: 4, font: { size: 12 } } });
  }
  function line(x, y, yaxis, tint, width, more) {
    return Object.assign({
      type: "scatter", mode: "lines", x: x, y: y, yaxis: yaxis, connectgaps: false,
      line: { color: tint, width: width }, hoverinfo: "skip"
    }, more);
  }
  // A cross where a stretch of NaN or inf begins, and a line for as long as it lasts.
  function offScale(marks, yaxis, top, tint) {
    var x = [], y = [], text = [], sizes = [];
    marks.filter(function (m) { return m.kind !== "zero"; }).forEach(function (m) {
      var word = m.kind === "nan" ? "NaN" : "inf";
      var where = m.first === m.last ? "step " + m.first : "steps " + m.first + " to " + m.last + ", " + m.count + " of them";
      x.push(m.first, m.last, null); y.push(top, top, null); sizes.push(8, 0, 0);
      text.push(word + ", " + where, word + ", " + where, "");
    });
    return {
      type: "scatter", mode: "lines+markers", yaxis: yaxis, cliponaxis: false, x: x, y: y, text: text,
      line: { color: alpha(tint, 0.6), width: 1.4 }, marker: { symbol: "x-thin-open", size: sizes, color: tint, opacity: 1, line: { width: 1.7 } },
      hovertemplate: "%{text}<extra></extra>"
    };
  }
  function values(series, part) {
    return series.reduce(function (all, s) { return all.concat(s[part].value); }, []);
  }
  // Raw steps thin, their running median thick; only one of the two answers to the pointer.
  function pair(s, part, yaxis, tint, label) {
    var curve = s[part], trended = curve.trend.step.length > 0;
    return [
      line(curve.step, curve.value, yaxis, trended ? alpha(tint, 0.34) : tint, trended ? 1 : 1.6, {
        hoverinfo: "all", hovertemplate: (label ? label + " " : "") + "step %{x:,d}: %{y:.4~g}<extra></extra>"
      }),
      line(curve.trend.step, curve.trend.value, yaxis, tint, 2)
    ];
  }

  function drawCurves(element, index) {
    var run = report.runs[index], series = run.series;
    if (!series.length) return Promise.resolve();
    var hasLoss = series.some(function (s) { return s.loss.step.length; });
    var rows = laneRows(run);
    var panels = stack((hasLoss ? [180] : []).concat([240], rows.length ? [rows.length * 19] : []), run.findings.some(function (f) { return f.steps.length; }));
    var layout = base(element, panels.height, narrow.matches ? 44 : 62), traces = [], at = 0;
    layout.hovermode = "closest";
    layout.xaxis = stepAxis(series);
    if (hasLoss) {
      var loss = valueAxis(values(series, "loss"), false, { domain: panels.domains[at] });
      layout.yaxis2 = loss.axis;
      title(layout, "Loss" + (loss.axis.type === "log" ? ", log scale" : ""), panels.domains[at][1]);
      series.forEach(function (s, i) {
        traces.push.apply(traces, pair(s, "loss", "y2", colour(i ? "s" + i % 6 : "ink"), many(run, i)));
        traces.push(offScale(s.loss.off_scale, "y2", loss.top, colour("bad")));
        tower(layout, s.loss, loss, "y2", colour("bad"));
      });
      at += 1;
    }
    drawNorms(run, series, layout, traces, panels.domains[at]);
    if (rows.length) drawLanes(run, rows, layout, traces, panels.domains[panels.domains.length - 1]);
    return Plotly.react(element, traces, layout, CONFIG);
  }
  function many(run, i) { return run.series.length > 1 ? escape(run.optimizers[i].name) + "," : ""; }

  function drawNorms(run, series, layout, traces, domain) {
    var seen = values(series, "norm"), steady = finite(seen);
    var lines = thresholdsInForce(series, lowest(steady), highest(steady));
    var advised = run.recommendation.threshold;
    var norms = valueAxis(seen.concat(lines, advised ? [advised] : []), true, { domain: domain });
    layout.yaxis = norms.axis;
    title(layout, "Gradient norm, log scale", domain[1]);
    series.forEach(function (s, i) {
      if (lines.length && s.norm.threshold_of_norm) traces.push.apply(traces, clippedRegion(s.norm));
      traces.push.apply(traces, pair(s, "norm", "y", colour(i ? "s" + i % 6 : "ink"), many(run, i)));
      traces.push(offScale(s.norm.off_scale, "y", norms.top, colour("bad")));
      traces.push(rings(run.thresholds[i], norms.ceiling));
      tower(layout, s.norm, norms, "y", colour("bad"));
    });
    if (advised) level(layout, advised, "recommended " + figure(advised), colour("accent"));
    findingLines(run, layout);
    series.forEach(function (s) { takenBack(s.recovery.undone, layout, domain[0]); });
  }
  // What a rollback took back is veiled: it was drawn, and no weights hold anything of it.
  function takenBack(stretches, layout, bottom) {
    stretches.forEach(function (u) {
      layout.shapes.push({
        type: "rect", xref: "x", x0: u.first - 0.5, x1: u.last + 0.5, yref: "paper", y0: bottom, y1: 1, layer: "above",
        fillcolor: alpha(colour("veil"), 0.62), line: { width: 0 }
      });
    });
  }
  function thresholdsInForce(series, low, high) {
    var all = series.reduce(function (found, s) {
      return found.concat(s.norm.threshold_of_norm ? finite(s.norm.threshold) : []);
    }, []);
    // A threshold far off is itself the finding (over-clipping, never reached): the log axis reaches it.
    return all.filter(function (t) { return t > low / 1e4 && t < high * 1e4; });
  }
  // The threshold as a line, and everything above it shaded: that is what clipping took away.
  function clippedRegion(norm) {
    var tint = colour("warn");
    var above = norm.value.map(function (v, i) {
      var t = norm.threshold[i];
      return v === null || t === null ? t : Math.max(v, t);
    });
    return [
      line(norm.step, norm.threshold, "y", tint, 1.4, { hoverinfo: "all", hovertemplate: "threshold %{y:.3~g}<extra></extra>" }),
      line(norm.step, above, "y", "rgba(0,0,0,0)", 0, { fill: "tonexty", fillcolor: alpha(tint, 0.17) })
    ];
  }
  function rings(picture, ceiling) {
    var spikes = ((picture && picture.spikes) || []).filter(function (s) { return s.norm <= ceiling; }).sort(function (a, b) { return b.factor - a.factor; }).slice(0, 150);
    return {
      type: "scatter", mode: "markers", x: spikes.map(function (s) { return s.step; }), y: spikes.map(function (s) { return s.norm; }),
      marker: { symbol: "circle-open", size: 9, color: colour("bad"), line: { width: 1.5 } },
      text: spikes.map(function (s) { return "spike at step " + s.step + ": " + figure(s.norm) + ", " + figure(s.factor) + "× its surroundings"; }),
      hovertemplate: "%{text}<extra></extra>"
    };
  }
  function level(layout, y, text, tint) {
    layout.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: y, y1: y, line: { color: tint, width: 1.3, dash: "dot" } });
    layout.annotations.push({
      xref: "paper", x: 1, xanchor: "right", yref: "y", y: Math.log10(y), yanchor: "bottom", text: text,
      showarrow: false, font: { size: 11.5, color: tint }, bgcolor: alpha(colour("surface"), 0.75), borderpad: 1
    });
  }
  // Each finding marks its first step across the curves in the colour of its card.
  function findingLines(run, layout) {
    var placed = {};
    run.findings.forEach(function (f, i) {
      if (!f.steps.length) return;
      var tint = colour("f" + i % 6), step = lowest(f.steps);
      layout.shapes.push({ type: "line", xref: "x", x0: step, x1: step, yref: "paper", y0: 0, y1: 1, line: { color: alpha(tint, 0.75), width: 1, dash: "dot" } });
      placed[step] = (placed[step] || 0) + 1;
      layout.annotations.push({
        xref: "x", x: step, yref: "paper", y: 1, yanchor: "top", xanchor: "center", xshift: 17 * (placed[step] - 1),
        text: "<b>" + LETTERS[i % 26] + "</b>", showarrow: false, bgcolor: tint, font: { color: colour("surface"), size: 11 }, borderpad: 2
      });
    });
  }

  // ---- lanes: when was it clipped, skipped, and where does each finding point ------------------

  function laneRows(run) {
    var rows = [];
    [["clipped", "warn"], ["skipped", "bad"]].forEach(function (kind) {
      var cells = [];
      run.series.forEach(function (s) {
        s.lanes.forEach(function (c) { if (c[kind[0]]) cells.push(c); });
      });
      if (cells.length) rows.push({ name: kind[0], tint: colour(kind[1]), marks: cells.map(function (c) { return laneMark(c, kind[0]); }) });
    });
    var acts = run.series.reduce(function (all, s) { return all.concat(s.recovery.acts); }, []);
    if (acts.length) rows.push({ name: narrow.matches ? "rescue" : "recovery", tint: colour("accent"), marks: acts.map(actMark) });
    run.findings.forEach(function (f, i) {
      if (!f.steps.length) return;
      var stride = Math.ceil(f.steps.length / 400);
      rows.push({
        name: "<b>" + LETTERS[i % 26] + "</b>", tint: colour("f" + i % 6),
        marks: f.steps.filter(function (_, k) { return k % stride === 0; }).map(function (step) {
          return { x: step, strength: 1, text: LETTERS[i % 26] + ": step " + step };
        })
      });
    });
    return rows;
  }
  function actMark(act) {
    return { x: (act.first + act.last) / 2, strength: act.act === "leave out" ? 0.45 : 1, text: escape(act.text), symbol: act.act === "rollback" ? "triangle-left" : null };
  }
  function laneMark(cell, kind) {
    var share = cell[kind] / cell.steps;
    var where = cell.steps === 1 ? "step " + cell.first : "steps " + cell.first + " to " + cell.last + ": " + cell[kind] + " of " + cell.steps;
    return { x: (cell.first + cell.last) / 2, strength: 0.3 + 0.7 * share, text: kind + ", " + where };
  }
  function drawLanes(run, rows, layout, traces, domain) {
    layout.yaxis3 = axis({
      domain: domain, range: [rows.length - 0.5, -0.5], showgrid: false,
      tickmode: "array", tickvals: rows.map(function (_, i) { return i; }), ticktext: rows.map(function (r) { return r.name; })
    });
    rows.forEach(function (row, i) {
      traces.push({
        type: "scatter", mode: "markers", yaxis: "y3", x: row.marks.map(function (m) { return m.x; }), y: row.marks.map(function () { return i; }),
        marker: {
          symbol: row.marks.map(function (m) { return m.symbol || "line-ns-open"; }), size: 9,
          color: row.marks.map(function (m) { return alpha(row.tint, m.strength); }), line: { width: 2, color: row.marks.map(function (m) { return alpha(row.tint, m.strength); }) }
        },
        text: row.marks.map(function (m) { return m.text; }), hovertemplate: "%{text}<extra></extra>"
      });
    });
  }

  // ---- several runs over each other -------------------------------------------------------

  function drawOverlay(element) {
    var all = [];
    report.runs.forEach(function (run, r) {
      run.series.forEach(function (s, i) {
        all.push({ s: s, tint: colour("s" + r % 6), name: escape(run.name + (run.series.length > 1 ? " · " + run.optimizers[i].name : "")), dash: i });
      });
    });
    if (!all.length) return Promise.resolve();
    var series = all.map(function (a) { return a.s; });
    var hasLoss = series.some(function (s) { return s.loss.step.length; });
    var turned = all.filter(function (a) { return a.s.cosine; });
    var panels = stack((hasLoss ? [220] : []).concat([240], turned.length ? [110] : []));
    var layout = base(element, panels.height, narrow.matches ? 44 : 62), traces = [], at = 0;
    layout.hovermode = "closest";
    layout.xaxis = stepAxis(series);
    if (hasLoss) at = overlayPanel(all, "loss", "y2", "Loss", layout, traces, panels.domains, at, false);
    at = overlayPanel(all, "norm", "y", "Gradient norm, log scale", layout, traces, panels.domains, at, true);
    if (turned.length) overlayDirection(turned, layout, traces, panels.domains[at]);
    layout.showlegend = true;
    layout.legend = { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom", font: { size: 12.5, color: colour("ink") }, bgcolor: "rgba(0,0,0,0)" };
    if (narrow.matches) Object.assign(layout.legend, { x: 0, xanchor: "left", entrywidthmode: "fraction", entrywidth: 0.31 });
    return Plotly.react(element, traces, layout, CONFIG);
  }
  function overlayPanel(all, part, yaxis, text, layout, traces, domains, at, log) {
    var range = valueAxis(values(all.map(function (a) { return a.s; }), part), log, { domain: domains[at] });
    layout[yaxis.replace("y", "yaxis")] = range.axis;
    title(layout, text + (!log && range.axis.type === "log" ? ", log scale" : ""), domains[at][1]);
    all.forEach(function (a) {
      var drawn = pair(a.s, part, yaxis, a.tint, a.name + ",");
      drawn.push(offScale(a.s[part].off_scale, yaxis, range.top, a.tint));
      tower(layout, a.s[part], range, yaxis, a.tint);
      drawn.forEach(function (t) { t.legendgroup = a.name; t.name = a.name; t.showlegend = false; });
      var shown = drawn[1].x.length ? drawn[1] : drawn[0];
      shown.showlegend = part === "norm";
      traces.push.apply(traces, drawn);
    });
    return at + 1;
  }
  function overlayDirection(turned, layout, traces, domain) {
    var seen = values(turned.map(function (a) { return a.s; }), "cosine");
    layout.yaxis4 = axis({ domain: domain, range: [Math.min(0.9, lowest(finite(seen))) - 0.04, 1.03], nticks: 4 });
    title(layout, narrow.matches ? "Direction kept (cosine)" : "Direction kept: cosine between the gradient and what was applied", domain[1]);
    turned.forEach(function (a) {
      pair(a.s, "cosine", "y4", a.tint, a.name + ",").forEach(function (t) {
        traces.push(Object.assign(t, { legendgroup: a.name, showlegend: false }));
      });
    });
  }

  // ---- threshold ----------------------------------------------------------------------------

  function drawThresholds(element, index, part) {
    var picture = report.runs[index].thresholds[part], edges = picture.histogram.edges;
    var panels = stack([170, 110]);
    var layout = base(element, panels.height, narrow.matches ? 44 : 52);
    var span = [edges[0], edges[edges.length - 1]], ticks = logTicks(span[0], span[1]);
    layout.bargap = 0.08;
    layout.hovermode = "closest";
    layout.xaxis = axis({
      range: span, anchor: "free", position: 0, tickmode: "array", tickvals: ticks.map(function (t) { return t.at; }),
      ticktext: ticks.map(function (t) { return t.text; }), title: { text: "gradient norm, log scale", standoff: 4, font: { size: 12 } }
    });
    layout.yaxis = axis({ domain: panels.domains[0], nticks: 4, rangemode: "tozero", tickformat: ",d" });
    layout.yaxis2 = axis({ domain: panels.domains[1], range: [-0.03, 1.05], tickformat: ".0%", nticks: 3 });
    title(layout, "Steps", panels.domains[0][1]);
    title(layout, "Share of steps clipped", panels.domains[1][1]);
    thresholdMark(layout, picture, panels.domains);
    var traces = [histogram(picture), spikeTicks(picture), rateCurve(picture), ratePoint(picture)];
    return Plotly.react(element, traces, layout, CONFIG);
  }
  function thresholdMark(layout, picture, domains) {
    var tint = colour("accent"), at = Math.log10(picture.threshold), wide = picture.interval.map(Math.log10);
    layout.shapes.push({ type: "rect", xref: "x", x0: wide[0], x1: wide[1], yref: "paper", y0: 0, y1: domains[0][1], fillcolor: alpha(tint, 0.11), line: { width: 0 }, layer: "below" });
    layout.shapes.push({ type: "line", xref: "x", x0: at, x1: at, yref: "paper", y0: 0, y1: domains[0][1], line: { color: tint, width: 1.5 } });
    layout.annotations.push({
      xref: "x", x: at, yref: "paper", y: domains[0][1], yanchor: "top", xanchor: "left", xshift: 3, showarrow: false,
      text: "<b>" + figure(picture.threshold) + "</b>", font: { color: tint, size: 12.5 }
    });
  }
  function histogram(picture) {
    var edges = picture.histogram.edges, threshold = Math.log10(picture.threshold), last = edges.length - 2;
    var middles = edges.slice(1).map(function (e, i) { return (e + edges[i]) / 2; });
    return {
      type: "bar", x: middles, y: picture.histogram.counts, width: edges[1] - edges[0],
      marker: { color: middles.map(function (m) { return m > threshold ? colour("warn") : alpha(colour("muted"), 0.55); }), line: { width: 0 } },
      text: edges.slice(1).map(function (e, i) {
        var low = figure(Math.pow(10, edges[i]));
        return i === last && picture.histogram.beyond ? low + " and more" : low + " to " + figure(Math.pow(10, e));
      }),
      textposition: "none", hovertemplate: "%{text}: %{y:,d} steps<extra></extra>"
    };
  }
  function spikeTicks(picture) {
    var end = highest(picture.histogram.edges);
    return {
      type: "scatter", mode: "markers", x: picture.spikes.map(function (s) { return Math.min(Math.log10(s.norm), end); }), y: picture.spikes.map(function () { return 0; }),
      cliponaxis: false, marker: { symbol: "line-ns-open", size: 9, color: colour("bad"), line: { width: 1.5 } },
      text: picture.spikes.map(function (s) { return "spike at step " + s.step + ": " + figure(s.norm); }), hovertemplate: "%{text}<extra></extra>"
    };
  }
  function rateCurve(picture) {
    var edges = picture.histogram.edges;
    return line(edges, picture.histogram.rates, "y2", colour("ink"), 1.8, {
      text: edges.map(function (e) { return "max_norm " + figure(Math.pow(10, e)); }), hoverinfo: "all", hovertemplate: "%{text} clips %{y:.1%}<extra></extra>"
    });
  }
  function ratePoint(picture) {
    return {
      type: "scatter", mode: "markers", yaxis: "y2", x: [Math.log10(picture.threshold)], y: [picture.clip_rate], marker: { size: 8, color: colour("accent") },
      hovertemplate: "max_norm " + figure(picture.threshold) + " clips %{y:.1%}<extra></extra>"
    };
  }

  // ---- tensors x steps ----------------------------------------------------------------------

  function drawHeatmap(element, index) {
    var map = report.runs[index].heatmap, count = map.tensors.length;
    var row = Math.max(Math.min(22, 720 / count), 2), stride = Math.ceil(13 / row);
    var longest = narrow.matches ? 15 : 30;
    var shown = map.tensors.map(function (t) { return t.name; }).filter(function (_, i) { return i % stride === 0; });
    var letters = Math.min(longest, highest(shown.map(function (n) { return n.length; })));
    var layout = base(element, Math.round(row * count) + 96, Math.round(letters * (narrow.matches ? 6.2 : 7)) + 14);
    layout.margin.t = 48;
    layout.xaxis = axis({ showgrid: false, type: "linear", tickformat: ",d", title: { text: "step", standoff: 4, font: { size: 12 } } });
    layout.yaxis = axis({
      range: [count - 0.5, -0.5], showgrid: false, tickmode: "array", tickfont: { family: MONO, size: narrow.matches ? 10 : 11 },
      tickvals: map.tensors.map(function (_, i) { return i; }).filter(function (i) { return i % stride === 0; }),
      ticktext: shown.map(function (name) { return escape(name.length > longest ? "…" + name.slice(1 - longest) : name); })
    });
    return Plotly.react(element, heatTraces(map, row * count), layout, CONFIG);
  }
  // ---- time x steps -------------------------------------------------------------------------

  function drawThroughTime(element, index, part) {
    var map = report.runs[index].through_time[part], count = map.positions.length;
    var row = Math.max(Math.min(22, 320 / count), 3), stride = Math.ceil(26 / row);
    var layout = base(element, Math.round(row * count) + 96, 44);
    layout.margin.t = 48;
    layout.xaxis = axis({ showgrid: false, type: "category", title: { text: "step", standoff: 4, font: { size: 12 } } });
    layout.yaxis = axis({
      range: [count - 0.5, -0.5], showgrid: false, tickmode: "array", title: { text: "time step", font: { size: 12 } },
      tickvals: map.positions.map(function (_, i) { return i; }).filter(function (i) { return i % stride === 0; }),
      ticktext: map.positions.filter(function (_, i) { return i % stride === 0; })
    });
    var rows = map.positions.map(function (place) { return { name: "time step " + place, shape: [], module: "" }; });
    var traces = heatTraces({ tensors: rows, steps: map.steps, last: map.steps, log10: map.log10, zero: map.zero, broken: [] }, row * count);
    traces.forEach(function (trace) { delete trace.x0; delete trace.dx; trace.x = map.steps.map(String); });
    return Plotly.react(element, traces, layout, CONFIG);
  }
  // Evenly spaced columns, told as such, let Plotly paint one pixel a cell instead of one rectangle.
  function placed(map, trace) {
    var n = map.steps.length;
    trace.type = "heatmap";
    trace.x0 = map.steps[0];
    trace.dx = n > 1 ? (map.steps[n - 1] - map.steps[0]) / (n - 1) : 1;
    return trace;
  }
  function heatTraces(map, height) {
    var seen = finite([].concat.apply([], map.log10));
    var low = seen.length ? least(seen, 0.005) : 0, high = seen.length ? least(seen, 0.995) : 1;
    if (high - low < 0.5) { low -= 0.25; high += 0.25; }
    var ticks = logTicks(low, high);
    var hover = map.tensors.map(function (t) {
      var shape = t.shape.length ? " [" + t.shape.join(" × ") + "]" : "";
      return escape(t.name) + shape + (t.module ? ", " + escape(t.module) : "");
    });
    var columns = map.steps.map(function (s, i) { return s === map.last[i] ? "step " + s : "steps " + s + " to " + map.last[i]; });
    var text = map.log10.map(function (cells, r) {
      return cells.map(function (v, c) { return hover[r] + "<br>" + columns[c] + ": " + (v === null ? "–" : figure(Math.pow(10, v))); });
    });
    var main = placed(map, {
      z: map.log10, zmin: low, zmax: high, text: text, hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
      colorscale: [[0, colour("low")], [0.5, colour("mid")], [1, colour("high")]],
      colorbar: {
        orientation: "h", thickness: 8, len: narrow.matches ? 0.8 : 0.32, x: 1, xanchor: "right", y: 1 + 20 / height, yanchor: "bottom", xpad: 0, ypad: 0, outlinewidth: 0,
        tickvals: ticks.map(function (t) { return t.at; }), ticktext: ticks.map(function (t) { return t.text; }), tickfont: { size: 11 }
      }
    });
    var over = [[map.zero, colour("zero"), "exactly zero"], [map.broken, alpha(colour("bad"), 0.62), "NaN or inf"]];
    return [main].concat(over.filter(function (o) { return o[0].length; }).map(function (o) {
      return overlay(map, o[0], o[1], o[2], hover, columns);
    }));
  }
  function overlay(map, cells, tint, word, hover, columns) {
    var z = map.tensors.map(function () { return map.steps.map(function () { return null; }); });
    var text = map.tensors.map(function () { return []; });
    cells.forEach(function (c) {
      z[c[0]][c[1]] = 1;
      text[c[0]][c[1]] = hover[c[0]] + "<br>" + columns[c[1]] + ": " + word;
    });
    return placed(map, {
      z: z, zmin: 0, zmax: 1, showscale: false, hoverongaps: false, text: text,
      colorscale: [[0, tint], [1, tint]], hovertemplate: "%{text}<extra></extra>"
    });
  }

  // ---- the page -----------------------------------------------------------------------------

  var DRAW = { curves: drawCurves, overlay: drawOverlay, thresholds: drawThresholds, heatmap: drawHeatmap, through_time: drawThroughTime };

  function draw(element) {
    if (!element.offsetWidth) return Promise.resolve();
    return Promise.resolve(DRAW[element.dataset.chart](element, +element.dataset.run, +element.dataset.part)).then(function () {
      element.dataset.drawn = root.dataset.theme + element.offsetWidth;
    });
  }
  function plots(scope) { return Array.prototype.slice.call((scope || document).querySelectorAll(".plot")); }
  function drawAll(scope) { return Promise.all(plots(scope).map(draw)); }
  // What is in view first, the rest when the browser has painted that.
  function drawInTurn() {
    var waiting = plots().filter(function (p) { return p.offsetWidth; }), opened = false;
    (function next() {
      var one = waiting.shift();
      if (!opened && (!one || one.getBoundingClientRect().top > innerHeight)) {
        opened = true;
        performance.mark("steadygrad-opened");
      }
      if (!one) { root.dataset.ready = "true"; performance.mark("steadygrad-drawn"); return; }
      draw(one).then(function () { requestAnimationFrame(function () { setTimeout(next, 0); }); });
    })();
  }

  var setTheme = window.steadygradShowTheme;
  document.addEventListener("steadygrad-theme", function () { drawAll(); });

  var tabs = [];
  function panel(tab) { return document.getElementById(tab.getAttribute("aria-controls")); }
  function select(chosen) {
    tabs.forEach(function (tab) {
      var on = tab === chosen;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panel(tab).hidden = !on;
    });
  }
  function choose(chosen) {
    select(chosen);
    drawAll(panel(chosen));
  }
  function bindTabs() {
    tabs = Array.prototype.slice.call(document.querySelectorAll("[role=tab]"));
    tabs.forEach(function (tab, i) {
      tab.addEventListener("click", function () { choose(tab); });
      tab.addEventListener("keydown", function (event) {
        var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        var next = tabs[(i + step + tabs.length) % tabs.length];
        choose(next);
        next.focus();
      });
      panel(tab).hidden = i > 0;
    });
  }
  bindTabs();
  // A served page was given a newer report (live.js): the same charts, drawn from it.
  document.addEventListener("steadygrad-renewed", function () {
    report = JSON.parse(document.getElementById("data").textContent);
    bindTabs();
    if (tabs.length) select(tabs.find(function (tab) { return tab.tabIndex === 0; }));
    drawAll();
  });

  document.addEventListener("click", function (event) {
    var copy = event.target.closest(".copy"), zoom = event.target.closest(".zoom");
    if (copy) copyCode(copy);
    if (zoom) showSteps(zoom);
  });
  function copyCode(from) {
    var text = from.parentNode.querySelector("code").textContent;
    var done = navigator.clipboard ? navigator.clipboard.writeText(text) : Promise.reject();
    done.catch(function () { return copyOldWay(text); }).then(function () {
      from.textContent = "Copied";
      setTimeout(function () { from.textContent = "Copy"; }, 1600);
    });
  }
  function copyOldWay(text) {
    var area = document.createElement("textarea");
    area.value = text;
    document.body.appendChild(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  function showSteps(from) {
    var plot = document.querySelector('.plot[data-chart="curves"][data-run="' + from.dataset.run + '"]');
    var first = +from.dataset.first, last = +from.dataset.last, room = Math.max(10, (last - first) * 0.15);
    plot.scrollIntoView({ block: "center" });
    Plotly.relayout(plot, { "xaxis.range": [first - room, last + room] });
  }

  var pending;
  addEventListener("resize", function () {
    clearTimeout(pending);
    pending = setTimeout(function () { drawAll(); }, 120);
  });
  var before;
  addEventListener("beforeprint", function () {
    before = root.dataset.theme;
    root.classList.add("printing");
    setTheme("light");
    tabs.forEach(function (tab) { panel(tab).hidden = false; });
    drawAll();
  });
  addEventListener("afterprint", function () {
    root.classList.remove("printing");
    setTheme(before);
    if (tabs.length) choose(tabs.filter(function (t) { return t.tabIndex === 0; })[0]);
    drawAll();
  });

  drawInTurn();
})();
