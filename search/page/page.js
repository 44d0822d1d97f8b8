"use strict";
// What the page shows is a function of its address: a search changes the address, and the address is what is searched.

const FIELDS = ["q", "not", "folder", "min", "max"];
const NAMES = [...FIELDS, "like", "all"];
const GROWING_EVERY = 3000; // milliseconds between two looks at an index that grows
const AT_ONCE = 24;

const $ = (id) => document.getElementById(id);
let asked = 0; // counts searches, so that a late answer to an earlier one is dropped
let playing = null; // the moment in the player, and from which second on its file is
let lookAgain = null;

function address() {
  const given = new URLSearchParams(location.search);
  const kept = new URLSearchParams();
  for (const name of NAMES) if (given.get(name)) kept.set(name, given.get(name));
  return kept;
}

function go(changes) {
  const next = address();
  if (!("all" in changes)) next.delete("all");
  for (const [name, value] of Object.entries(changes)) value ? next.set(name, value) : next.delete(name);
  const text = next.toString();
  if (text !== address().toString()) history.pushState(null, "", text ? `/?${text}` : "/");
  show();
}

function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const rest = (tenths % 600) / 10;
  const minutes = Math.floor(tenths / 600);
  const end = (rest < 10 ? "0" : "") + (Number.isInteger(rest) ? rest : rest.toFixed(1));
  if (minutes < 60) return `${minutes}:${end}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${end}`;
}

function say(text, busy = false) {
  $("status").textContent = text;
  $("status").classList.toggle("busy", busy);
}

async function ask(path) {
  const answer = await fetch(path, { headers: { accept: "application/json" } });
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const error = new Error(content.error || `the server answered ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return content;
}

async function show() {
  const wanted = address();
  const number = ++asked;
  for (const name of FIELDS) $(name).value = wanted.get(name) || "";
  choose_folder(wanted.get("folder") || "");
  show_like(wanted.get("like"));
  $("show-all").hidden = true;
  document.title = wanted.get("q") ? `${wanted.get("q")} – Find a moment` : "Find a moment";
  if (!wanted.get("q") && !wanted.get("like")) {
    $("moments").replaceChildren();
    $("moments").classList.remove("old");
    say(wanted.get("not") ? "Say what to find, beside what it should not be." : "Say in words what happens.");
    return;
  }
  say("Searching…", true);
  $("moments").classList.add("old");
  let answer;
  try {
    answer = await ask(`/api/search?${wanted}&top=${AT_ONCE}`);
  } catch (error) {
    if (number !== asked) return;
    $("moments").replaceChildren();
    say(error.status ? `Not searched: ${error.message}.` : "The server does not answer. Is it still running?");
    return;
  }
  if (number !== asked) return;
  show_growth(answer);
  if (answer.query.like) $("like-name").textContent = `${answer.query.like_file} at ${clock(answer.query.like_from)}`;
  $("moments").classList.remove("old");
  $("moments").replaceChildren(...answer.moments.map(card));
  const few = answer.growing ? " The index is still growing; it may come." : "";
  if (!answer.windows) say(`The index holds no videos yet.${few}`);
  else if (!answer.considered) say("No video fits the folder and the lengths.");
  else if (!answer.stands_out && !answer.moments.length) {
    const judged = answer.excess !== null;
    say((judged ? "Nothing stands out: no moment fits this better than it fits anything." : "Nothing was found.") + few);
    $("show-all").hidden = !judged;
  } else {
    const count = answer.moments.length === 1 ? "1 moment" : `${answer.moments.length} moments`;
    say(answer.stands_out ? `${count}, the best first.` : `Nothing stands out; the nearest ${count}.`);
  }
}

function card(moment) {
  const item = $("moment").content.cloneNode(true).firstElementChild;
  const time = `${clock(moment.from)}–${clock(moment.to)}`;
  const name = moment.file.split("/").pop();
  item.querySelector("img").src = `/picture/${moment.window}`;
  item.querySelector(".time").textContent = time;
  item.querySelector(".file").textContent = name;
  item.querySelector(".file").title = moment.file;
  item.querySelector(".score").textContent = `score ${moment.score.toFixed(2)}`;
  const play = item.querySelector(".play");
  play.setAttribute("aria-label", `Play ${name}, ${time}`);
  play.addEventListener("click", () => open_player(moment));
  const more = item.querySelector(".more");
  more.setAttribute("aria-label", `More like ${name}, ${time}`);
  more.addEventListener("click", () => more_like(moment));
  if (moment.state !== "there") {
    const state = item.querySelector(".state");
    state.hidden = false;
    state.textContent = moment.state === "gone" ? "the file is gone" : "changed since it was indexed";
  }
  return item;
}

function more_like(moment) {
  close_player();
  window.scrollTo(0, 0);
  go({ like: String(moment.window), q: "", not: "" });
}

function show_like(window_number) {
  $("like").hidden = !window_number;
  if (!window_number) return;
  $("like-picture").src = `/picture/${encodeURIComponent(window_number)}`;
  $("like-name").textContent = "";
}

// --- the player ---

function open_player(moment) {
  playing = { moment, offset: 0, clip: !moment.playable, at: moment.from };
  $("player-name").textContent = moment.file;
  $("player-time").textContent = `${clock(moment.from)}–${clock(moment.to)}`;
  if (!$("player").open) $("player").showModal();
  load();
}

function load() {
  const { moment, clip } = playing;
  const video = $("video");
  playing.offset = clip ? moment.from : 0;
  playing.at = clip ? 0 : moment.from;
  $("player-status").textContent = clip ? "Making a clip that this browser can play…" : "Loading…";
  // the fragment lets the browser begin there at once; what a clip begins with is the moment
  video.src = clip ? `/clip/${moment.first_window}` : `/video/${moment.video}#t=${moment.from}`;
  video.load();
}

function start() {
  $("video").currentTime = playing.at;
  $("video").play().catch(() => {}); // a browser that wants a click first shows its controls
}

async function failed() {
  if (!playing || !$("video").getAttribute("src")) return;
  if (!playing.clip) {
    playing.clip = true;
    load();
    return;
  }
  $("player-status").textContent = "This cannot be played.";
  try {
    const answer = await fetch(`/clip/${playing.moment.first_window}`);
    if (!answer.ok) $("player-status").textContent = `This cannot be played: ${(await answer.json()).error}.`;
    else await answer.body?.cancel();
  } catch { /* the line above stays */ }
}

function close_player() {
  if ($("player").open) $("player").close();
}

function stop() {
  playing = null;
  $("video").pause();
  $("video").removeAttribute("src");
  $("video").load();
}

// --- what the index holds ---

function choose_folder(folder) {
  const select = $("folder");
  if (folder && ![...select.options].some((option) => option.value === folder)) select.add(new Option(folder, folder));
  select.value = folder;
}

function show_growth(answer) {
  const growing = answer.growing;
  $("growing").hidden = !growing;
  if (growing) $("growing").textContent = `The index is still growing: ${answer.done} of ${answer.total} videos.`;
  clearTimeout(lookAgain);
  if (growing) lookAgain = setTimeout(hold, GROWING_EVERY);
}

async function hold() {
  let info;
  try {
    info = await ask("/api/info");
  } catch (error) {
    $("holds").textContent = `What the index holds is not known: ${error.message}.`;
    return;
  }
  const wanted = address().get("folder") || "";
  $("folder").replaceChildren(new Option("all folders", ""), ...info.folders.map((name) => new Option(name, name)));
  choose_folder(wanted);
  const bad = info.bad_videos ? `, ${info.bad_videos} that cannot be read` : "";
  $("holds").textContent = `${info.videos} videos${bad}, ${clock(info.seconds)}, ${info.windows} windows.`;
  show_growth(info);
}

// --- what a person does ---

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const values = Object.fromEntries(FIELDS.map((name) => [name, $(name).value.trim()]));
  // another text is another search: what it was to be like is kept where a text is added to it
  go(values);
});
for (const name of ["folder", "min", "max"]) $(name).addEventListener("change", () => $("form").requestSubmit());
$("unlike").addEventListener("click", () => go({ like: "" }));
$("show-all").addEventListener("click", () => go({ all: "1" }));
$("close").addEventListener("click", close_player);
$("again").addEventListener("click", start);
$("player-like").addEventListener("click", () => more_like(playing.moment));
$("player").addEventListener("close", stop);
$("player").addEventListener("click", (event) => { if (event.target === $("player")) close_player(); });
$("video").addEventListener("loadedmetadata", () => {
  if (!playing) return;
  if (!$("video").videoWidth) { failed(); return; } // sound alone: the picture is in a form that it does not know
  $("player-status").textContent = playing.clip ? "A clip made for this browser, without sound." : "";
  start();
});
$("video").addEventListener("timeupdate", () => {
  if (playing) $("player-time").textContent =
    `${clock(playing.offset + $("video").currentTime)} · moment ${clock(playing.moment.from)}–${clock(playing.moment.to)}`;
});
$("video").addEventListener("error", failed);
window.addEventListener("popstate", () => { close_player(); show(); });
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select, textarea, video");
  if (event.key === "/" && !typing && !$("player").open) { event.preventDefault(); $("q").focus(); }
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const cards = [...document.querySelectorAll(".play")];
  const here = cards.indexOf(document.activeElement);
  if (move && here >= 0 && cards[here + move]) { event.preventDefault(); cards[here + move].focus(); }
});

show();
hold();
