"use strict";
// pictures open large; the arrow keys go from one to the next, Escape closes
const all = [...document.querySelectorAll("button.pic")];
const dialog = document.querySelector("dialog");
const pics = dialog.querySelector(".pics"), about = dialog.querySelector("p");
let at = 0;
function show(i) {
  at = (i + all.length) % all.length;
  pics.replaceChildren(...[...all[at].children].map((one) => one.cloneNode(true)));
  about.textContent = all[at].closest("figure").querySelector("figcaption").innerText.replace(/\n+/g, " · ");
  if (!dialog.open) dialog.showModal();
}
all.forEach((button, i) => button.addEventListener("click", () => show(i)));
dialog.querySelector(".before").addEventListener("click", () => show(at - 1));
dialog.querySelector(".after").addEventListener("click", () => show(at + 1));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => all[at].focus());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(at - 1);
  if (event.key === "ArrowRight") show(at + 1);
});
