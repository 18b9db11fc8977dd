"use strict";
// rows are asked for page by page as the end of the list comes near; text from the archive is only ever textContent
const byId = (id) => document.getElementById(id);
const form = byId("search"), list = byId("rows"), end = byId("end");
const dialog = document.querySelector("dialog"), pics = dialog.querySelector(".pics"), about = dialog.querySelector("p");
const COUNT = 60, SMALL = 96;
let rows = [], total = null, turn = 0, isLoading = false, at = 0;

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  while (bytes >= 999.5 && i < 3) { bytes /= 1000; i++; }
  return `${i ? bytes.toPrecision(3) : bytes} ${units[i]}`;
}
function facts(row) {
  if (row.damage) return row.damage;
  const out = [];
  if (row.psnr !== null) out.push(`${row.psnr.toFixed(2)} dB`);
  if (row.ssim !== null) out.push(`SSIM ${row.ssim.toFixed(3)}`);
  if (row.width) out.push(`${row.width} × ${row.height}`);
  out.push(row.codec, `${size(row.source_bytes)} in ${size(row.stored_bytes)}`);
  if (row.reason) out.push(row.reason);
  if (row.label !== null) out.push(`label ${row.label}`);
  return out.join(" · ");
}
function made(tag, className, ...inside) {
  const one = document.createElement(tag);
  if (className) one.className = className;
  one.append(...inside);
  return one;
}
function image(row, kind) {
  const one = made("img", row.width && Math.max(row.width, row.height) <= SMALL ? "small" : "");
  one.alt = row.path;
  if (kind === "thumb") one.loading = "lazy";
  one.src = `${kind}/${row.number}`;
  return one;
}
function item(row, i) {
  const button = made("button", "pic", made("span", "", image(row, "thumb")));
  button.type = "button";
  button.addEventListener("click", () => show(i));
  return made("li", "", made("figure", "", button, made("figcaption", "about", made("strong", "", row.path), facts(row))));
}
async function more() {
  if (isLoading || (total !== null && rows.length >= total)) return;
  isLoading = true;
  const mine = turn;
  const query = new URLSearchParams({ where: form.where.value, order: form.order.value, start: rows.length, count: COUNT });
  let found;
  try {
    const answer = await fetch(`rows?${query}`);
    found = await answer.json();
  } catch {
    found = { error: "the gallery does not answer; is zippy-batch serve still running?" };
  }
  if (mine !== turn) return;
  isLoading = false;
  if (found.error) return fail(found.error);
  total = found.total;
  const first = rows.length;
  rows.push(...found.rows);
  list.append(...found.rows.map((row, i) => item(row, first + i)));
  byId("count").textContent = `${total.toLocaleString("en")} ${total === 1 ? "file" : "files"}`;
  end.textContent = rows.length < total ? "…" : total ? "That is all." : "No file is like that.";
  if (rows.length < total) { watch.unobserve(end); watch.observe(end); }
}
function fail(text) {
  total = rows.length;
  end.textContent = "";
  byId("error").textContent = text;
  byId("error").hidden = false;
}
function start() {
  turn++;
  rows = []; total = null; isLoading = false;
  list.replaceChildren();
  byId("error").hidden = true;
  more();
}
const watch = new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) more(); }, { rootMargin: "1200px" });
watch.observe(end);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  history.replaceState(null, "", `?${new URLSearchParams({ where: form.where.value, order: form.order.value })}`);
  start();
});
form.order.addEventListener("change", () => form.requestSubmit());

async function show(i) {
  if (i >= rows.length) await more();
  if (i < 0 || i >= rows.length) return;
  at = i;
  pics.replaceChildren(image(rows[i], "picture"));
  about.textContent = `${rows[i].path} · ${facts(rows[i])}`;
  if (!dialog.open) dialog.showModal();
}
dialog.querySelector(".before").addEventListener("click", () => show(at - 1));
dialog.querySelector(".after").addEventListener("click", () => show(at + 1));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { const one = list.children[at]; if (one) one.querySelector("button").focus(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(at - 1);
  if (event.key === "ArrowRight") show(at + 1);
});

const given = new URLSearchParams(location.search);
form.where.value = given.get("where") || "";
if ([...form.order.options].some((one) => one.value === given.get("order"))) form.order.value = given.get("order");
start();
