"use strict";

const PAGE = 20;
const POLL_SECONDS = 20;
const LONGEST = 1000;

const $ = (id) => document.getElementById(id);
const state = { user: null, token: null, nextBefore: null, newest: 0, waiting: [], signingUp: true };

/** A refusal by the server; `message` is a sentence for the reader. */
class Refusal extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.field = error.field;
  }
}

async function request(method, path, data) {
  const headers = { Accept: "application/json" };
  if (data !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET") headers["X-CSRFToken"] = await token();
  let response;
  try {
    response = await fetch(path, { method, headers, body: data === undefined ? undefined : JSON.stringify(data) });
  } catch {
    throw new Refusal(0, { message: "The server cannot be reached. Please try again." });
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw new Refusal(response.status, answer.error || { message: "Something went wrong. Please try again." });
}

async function token() {
  if (!state.token) state.token = (await request("GET", "/api/csrf")).csrf_token;
  return state.token;
}

/** Like request, once more with a new token when another tab has logged in or out meanwhile. */
async function change(method, path, data) {
  try {
    return await request(method, path, data);
  } catch (refusal) {
    if (refusal.field !== "csrf_token") throw refusal;
    state.token = null;
    return request(method, path, data);
  }
}

/* Entries */

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

function ago(iso) {
  const seconds = (new Date(iso) - Date.now()) / 1000;
  if (seconds > -45) return "just now";
  if (seconds > -3600) return relative.format(Math.round(seconds / 60), "minute");
  if (seconds > -86400) return relative.format(Math.round(seconds / 3600), "hour");
  if (seconds > -7 * 86400) return relative.format(Math.round(seconds / 86400), "day");
  return clock.format(new Date(iso));
}

function render(post) {
  const item = $("entry").content.firstElementChild.cloneNode(true);
  item.classList.add(`ink-${post.ink}`);
  item.dataset.id = post.id;
  item.dataset.author = post.author;
  item.querySelector(".entry-body").textContent = post.body;
  item.querySelector(".byline").textContent = post.author;
  const time = item.querySelector("time");
  time.dateTime = post.created_at;
  time.title = clock.format(new Date(post.created_at));
  time.textContent = ago(post.created_at);
  const remove = item.querySelector(".remove");
  remove.setAttribute("aria-label", `Delete your entry: ${post.body.slice(0, 60)}`);
  remove.addEventListener("click", () => tearOut(item));
  return item;
}

function showOwn() {
  for (const item of $("list").children) {
    item.querySelector(".remove").hidden = item.dataset.author !== state.user?.name;
  }
  $("empty").hidden = $("list").children.length > 0;
}

function announce(text) {
  $("announcer").textContent = "";
  // A live region only speaks when its text changes after it was emptied.
  setTimeout(() => { $("announcer").textContent = text; }, 50);
}

async function loadPage() {
  const before = state.nextBefore ? `&before=${state.nextBefore}` : "";
  $("more").disabled = true;
  $("list-error").textContent = "";
  try {
    const page = await request("GET", `/api/posts?limit=${PAGE}${before}`);
    const items = page.posts.map(render);
    $("list").append(...items);
    state.nextBefore = page.next_before;
    state.newest = Math.max(state.newest, ...page.posts.map((post) => post.id));
    $("more").hidden = page.next_before === null;
    showOwn();
    return items;
  } catch (refusal) {
    $("list-error").textContent = refusal.message;
    $("more").hidden = false;
    return [];
  } finally {
    $("more").disabled = false;
    $("list").setAttribute("aria-busy", "false");
  }
}

async function turnPage() {
  const items = await loadPage();
  if (items.length && state.nextBefore === null) {
    items[0].tabIndex = -1;
    items[0].focus();
  }
  if (items.length) announce(`${items.length} older entries loaded.`);
}

function prepend(posts) {
  for (const post of posts) {
    if ($("list").querySelector(`[data-id="${post.id}"]`)) continue;
    const item = render(post);
    item.classList.add("arrived");
    $("list").prepend(item);
  }
  showOwn();
}

async function poll() {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("#list time")) time.textContent = ago(time.dateTime);
  let page;
  try {
    page = await request("GET", `/api/posts?limit=${PAGE}`);
  } catch {
    return; // A reader has nothing to do about a missed poll: the next one may succeed.
  }
  const known = new Set(state.waiting.map((post) => post.id));
  const fresh = page.posts.filter((post) => post.id > state.newest && !known.has(post.id));
  if (!fresh.length) return;
  state.waiting = [...fresh, ...state.waiting];
  const text = state.waiting.length === 1 ? "1 new entry" : `${state.waiting.length} new entries`;
  $("fresh").textContent = `Show ${text}`;
  $("fresh").hidden = false;
  announce(`${text}.`);
}

function showFresh() {
  const posts = state.waiting.sort((one, other) => one.id - other.id);
  state.waiting = [];
  state.newest = Math.max(state.newest, ...posts.map((post) => post.id));
  prepend(posts);
  $("fresh").hidden = true;
  $("entries").focus({ preventScroll: true });
}

async function tearOut(item) {
  const dialog = $("confirm");
  dialog.returnValue = "keep";
  dialog.showModal();
  await new Promise((resolve) => { dialog.addEventListener("close", resolve, { once: true }); });
  if (dialog.returnValue !== "delete") return;
  try {
    await change("DELETE", `/api/posts/${item.dataset.id}`);
    item.remove();
    showOwn();
    announce("Your entry was deleted.");
    $("entries").focus({ preventScroll: true });
  } catch (refusal) {
    $("list-error").textContent = refusal.message;
  }
}

/* Account and writing */

function setUser(user) {
  state.user = user;
  $("guest").hidden = user !== null;
  $("writer").hidden = user === null;
  $("me").textContent = user ? user.name : "";
  $("writer").className = user ? `ink-${user.ink}` : "";
  showOwn();
}

function choose(signingUp) {
  state.signingUp = signingUp;
  $("show-signup").setAttribute("aria-pressed", String(signingUp));
  $("show-login").setAttribute("aria-pressed", String(!signingUp));
  $("inks").hidden = !signingUp;
  $("password-hint").hidden = !signingUp;
  $("password").autocomplete = signingUp ? "new-password" : "current-password";
  $("account-submit").textContent = signingUp ? "Sign up" : "Log in";
  $("account-error").textContent = "";
}

/** Send a form once at a time; a refusal is shown beside it, and the field at fault is focused. */
async function send(form, action) {
  const button = form.querySelector(".primary");
  const error = form.querySelector(".error");
  error.textContent = "";
  for (const input of form.elements) input.removeAttribute("aria-invalid");
  button.disabled = true;
  try {
    await action(new FormData(form));
    form.reset();
  } catch (refusal) {
    error.textContent = refusal.message;
    const input = refusal.field && form.elements.namedItem(refusal.field);
    if (input instanceof HTMLElement) {
      input.setAttribute("aria-invalid", "true");
      input.focus();
    }
    if (refusal.status === 401 && form.id === "compose") setUser(null);
  } finally {
    button.disabled = false;
  }
}

async function enter(data) {
  const account = { name: data.get("name").trim(), password: data.get("password") };
  if (state.signingUp) account.ink = data.get("ink");
  const answer = await change("POST", state.signingUp ? "/api/signup" : "/api/login", account);
  state.token = answer.csrf_token;
  setUser(answer.user);
  announce(`Welcome, ${answer.user.name}.`);
  $("body").focus();
}

async function write(data) {
  const post = await change("POST", "/api/posts", { body: data.get("body") });
  showFresh();
  prepend([post]);
  state.newest = Math.max(state.newest, post.id);
  announce("Your entry is in the book.");
}

async function leave() {
  try {
    await change("POST", "/api/logout");
    state.token = null;
    setUser(null);
    announce("You are logged out.");
    $("name").focus();
  } catch (refusal) {
    $("compose-error").textContent = refusal.message;
  }
}

function count() {
  $("count").textContent = `${LONGEST - $("body").value.length} left`;
}

$("show-signup").addEventListener("click", () => choose(true));
$("show-login").addEventListener("click", () => choose(false));
$("account").addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target, enter);
});
$("compose").addEventListener("submit", async (event) => {
  event.preventDefault();
  await send(event.target, write);
  count();
});
$("body").addEventListener("input", count);
$("body").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("compose").requestSubmit();
});
$("logout").addEventListener("click", leave);
$("more").addEventListener("click", turnPage);
$("fresh").addEventListener("click", showFresh);

request("GET", "/api/me").then((answer) => setUser(answer.user), () => setUser(null));
loadPage();
setInterval(poll, POLL_SECONDS * 1000);
