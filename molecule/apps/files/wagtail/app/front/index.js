import confetti from "canvas-confetti";

document.addEventListener("click", () => confetti());
