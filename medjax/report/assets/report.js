// The behaviour of a report: sortable tables, and the viewer of scans and masks (niivue). Everything it needs is inside the page.
"use strict";
(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(find(id).textContent);

  // ---- tables -------------------------------------------------------------------------------------------------------------
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent;
    const number = parseFloat(text);
    return Number.isNaN(number) ? text : number;
  };
  for (const head of document.querySelectorAll("th.sortable")) {
    head.addEventListener("click", () => {
      const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, column), y = value(b, column);
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
        return down ? -order : order;
      });
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...rows);
    });
  }

  // ---- viewer -------------------------------------------------------------------------------------------------------------
  if (!find("scans")) return;
  const scans = read("scans");
  const views = { planes: 3, axial: 0, coronal: 1, sagittal: 2, solid: 4 };
  let viewer = null, shown = null, turn = 0;

  const inflate = (base64) => {
    const packed = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const say = (text, bad) => {
    find("place").textContent = text;
    find("place").style.color = bad ? "#ff8a80" : "";
  };
  async function start() {
    const script = document.createElement("script");
    script.textContent = await inflate(find("niivue").textContent.trim());
    document.head.append(script);
    viewer = new window.niivue.Niivue({
      backColor: [0.067, 0.067, 0.067, 1], crosshairColor: [1, 1, 1, 0.5], crosshairWidth: 0.25, crosshairWidthUnit: "percent",
      isRadiologicalConvention: true,
      dragAndDropEnabled: false, multiplanarShowRender: 0, loadingText: "", logLevel: "error",
    });
    viewer.onLocationChange = (place) => say(place.string);
    await viewer.attachToCanvas(find("canvas"));
  }
  const palette = (labels) => {
    const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
    labels.forEach((label, k) => {
      table.R.push(label.rgb[0]); table.G.push(label.rgb[1]); table.B.push(label.rgb[2]); table.A.push(255);
      table.I.push(k + 1); table.labels.push(label.name);
    });
    return table;
  };
  const volume = (base64, name, extra) => window.niivue.NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...extra });

  async function show(position) {
    const mine = ++turn;
    say("loading ...");
    if (!viewer) await start();
    const scan = read(`scan-${position}`);
    const [low, high] = scan.window;
    const loaded = [await volume(scan.image, "image", { colormap: "gray", cal_min: low, cal_max: high })];
    for (const [name, layer] of Object.entries(scan.layers)) {
      const one = await volume(layer.data, name, { opacity: 0 });
      one.setColormapLabel(palette(layer.labels));
      loaded.push(one);
    }
    if (mine !== turn) return;
    while (viewer.volumes.length) viewer.removeVolume(viewer.volumes[viewer.volumes.length - 1]);
    for (const one of loaded) viewer.addVolume(one);
    shown = scan;
    const chosen = find("layer").value, names = Object.keys(scan.layers);
    find("layer").replaceChildren(...[...names, "none"].map((name) => new Option(name, name)));
    find("layer").value = [...names, "none"].includes(chosen) ? chosen : names[names.length - 1];
    find("low").value = low; find("high").value = high;
    find("scan").value = position;
    find("note").textContent = scan.note;
    if (scan.focus) viewer.scene.crosshairPos = viewer.mm2frac(scan.focus);
    look();
    say("");
    root.dataset.viewer = "ready";
  }
  function layers() {
    if (!shown) return;
    const chosen = find("layer").value, strength = Number(find("strength").value), solid = find("view").value === "solid";
    viewer.setOpacity(0, solid ? 0.12 : 1);
    Object.keys(shown.layers).forEach((name, k) => viewer.setOpacity(k + 1, name === chosen ? strength : 0));
    find("legend").replaceChildren(...(shown.layers[chosen]?.labels ?? []).filter((label) => label.seen).map((label) => {
      const entry = document.createElement("span"), patch = document.createElement("i");
      patch.style.background = `rgb(${label.rgb})`;
      entry.append(patch, label.name);
      return entry;
    }));
  }
  function look() {
    if (!viewer) return;
    viewer.setSliceType(views[find("view").value]);
    layers();
  }
  function grey() {
    if (!shown) return;
    [viewer.volumes[0].cal_min, viewer.volumes[0].cal_max] = [Number(find("low").value), Number(find("high").value)];
    viewer.updateGLVolume();
  }
  const guarded = (action) => Promise.resolve().then(action).catch((error) => {
    root.dataset.viewer = "failed";
    say(`The viewer cannot start here (${error.message ?? error}). It needs WebGL 2; the pictures below do not.`, true);
  });
  find("scan").replaceChildren(...scans.map((scan, k) => new Option(scan.title, k)));
  find("scan").addEventListener("change", () => guarded(() => show(Number(find("scan").value))));
  find("view").addEventListener("change", () => guarded(look));
  for (const id of ["layer", "strength"]) find(id).addEventListener("input", () => guarded(layers));
  for (const id of ["low", "high"]) find(id).addEventListener("change", () => guarded(grey));
  const place = Object.fromEntries(scans.map((scan, k) => [scan.key, k]));
  for (const button of document.querySelectorAll("button[data-case]")) {
    if (!(button.dataset.case in place)) { button.replaceWith(...button.childNodes); continue; }
    button.addEventListener("click", () => {
      find("viewer").scrollIntoView();
      guarded(() => show(place[button.dataset.case]));
    });
  }
  guarded(() => show(0));
})();
