"use strict";
document.documentElement.classList.add("js");
document.addEventListener("DOMContentLoaded", () => {
	const table = document.getElementById("guests");
	const bodies = [...table.tBodies].filter((b) => b.id);
	const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

	const open = (body, yes) => {
		const button = body.querySelector("tr.m button");
		button.setAttribute("aria-expanded", yes);
		body.querySelector("tr.d").hidden = !yes;
	};
	table.addEventListener("click", (e) => {
		const button = e.target.closest("button");
		if (!button) return;
		if (button.closest("thead")) sort(button.closest("th"));
		else open(button.closest("tbody"), button.getAttribute("aria-expanded") !== "true");
	});

	// What a cell is sorted by: its number where it has one, else its words. Cells that say nothing come last,
	// whichever way.
	const key = (body, column) => {
		const cell = body.rows[0].cells[column];
		return cell.dataset.v !== undefined ? (cell.dataset.v === "" ? null : Number(cell.dataset.v)) : cell.textContent || null;
	};
	const sort = (th) => {
		const down = th.getAttribute("aria-sort") === "ascending";
		for (const other of th.parentNode.cells) other.removeAttribute("aria-sort");
		th.setAttribute("aria-sort", down ? "descending" : "ascending");
		const keyed = bodies.map((body) => [key(body, th.cellIndex), body]);
		keyed.sort(([a], [b]) => {
			if (a === null || b === null) return (a === null) - (b === null);
			const order = typeof a === "number" ? a - b : collator.compare(a, b);
			return down ? -order : order;
		});
		table.append(...keyed.map(([, body]) => body));
	};

	const filter = document.getElementById("filter");
	const outcome = document.getElementById("outcome");
	const shown = document.getElementById("shown");
	const texts = new Map();
	const apply = () => {
		const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
		let count = 0;
		for (const body of bodies) {
			if (words.length && !texts.has(body)) texts.set(body, body.textContent.toLowerCase());
			const of = body.dataset.outcome;
			const want = outcome.value;
			const match = (!want || want === of || (want === "not done" && of !== "done")) && words.every((w) => texts.get(body).includes(w));
			body.hidden = !match;
			count += match;
		}
		shown.textContent = count + " of " + bodies.length + " shown";
	};
	if (filter) {
		filter.addEventListener("input", apply);
		outcome.addEventListener("change", apply);
		filter.form.addEventListener("submit", (e) => e.preventDefault());
		apply();
	}

	// A link to a guest shows it whatever is filtered, and opens it.
	const follow = () => {
		const body = bodies.find((b) => "#" + b.id === location.hash);
		if (!body) return;
		if (body.hidden) {
			filter.value = "";
			outcome.value = "";
			apply();
		}
		open(body, true);
		body.scrollIntoView();
		body.querySelector("button").focus();
	};
	window.addEventListener("hashchange", follow);
	document.addEventListener("click", (e) => {
		const link = e.target.closest("a");
		if (link && link.hash === location.hash) {
			e.preventDefault();
			follow();
		}
	});
	follow();
});
