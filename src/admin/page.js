'use strict';
// Keeps the figures current. Without it the page reloads itself and shows the same.
(() => {
  const EVERY = 2000;    // milliseconds between two looks
  const PATIENCE = 5000; // after so many without an answer there is none
  const gone = document.getElementById('gone');
  let answered = new Date();
  let timer;

  // Makes `old` equal to `fresh` and touches only what differs, so that focus, selection and
  // whatever is typed stay.
  function morph(old, fresh) {
    if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const had = [...old.childNodes];
    const has = [...fresh.childNodes];
    has.forEach((node, i) => (had[i] ? morph(had[i], node) : old.append(node)));
    had.slice(has.length).forEach((node) => node.remove());
  }

  async function ask(path, options) {
    const signal = AbortSignal.timeout(PATIENCE);
    const answer = await fetch(path, { cache: 'no-store', redirect: 'error', signal, ...options });
    const type = answer.headers.get('content-type') ?? '';
    if (!type.startsWith('text/html')) throw new Error(await answer.text());
    return new DOMParser().parseFromString(await answer.text(), 'text/html');
  }

  function replace(ids, fresh) {
    for (const id of ids) {
      const [old, other] = [document.getElementById(id), fresh.getElementById(id)];
      if (old && other) morph(old, other);
    }
  }

  function show(fresh) {
    // Another version serves this page now, with another script and another look.
    if (fresh.documentElement.dataset.build !== document.documentElement.dataset.build) {
      return location.reload();
    }
    answered = new Date();
    gone.hidden = true;
    document.body.classList.remove('gone');
    replace(['phase', 'figures', 'time', 'icon'], fresh);
    document.title = fresh.title;
  }

  function miss() {
    if (gone.hidden) {
      const clock = (time) => time.toLocaleTimeString([], { hour12: false });
      gone.textContent =
        `Not answering since ${clock(new Date())}. Below is what it said at ${clock(answered)}.`;
      gone.hidden = false;
      document.body.classList.add('gone');
      document.title = '✕ not answering – consentd';
      const icon = document.getElementById('icon');
      icon.setAttribute('href', icon.getAttribute('href').replace(/fill='%23\w+'/, "fill='%23888888'"));
    }
  }

  async function look() {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      show(await ask('./'));
    } catch {
      if (!document.hidden) miss();
    }
    clearTimeout(timer);
    timer = setTimeout(look, EVERY);
  }

  document.addEventListener('visibilitychange', look);
  timer = setTimeout(look, EVERY);

  const check = document.getElementById('check');
  if (!check) return;
  check.hidden = false;
  check.addEventListener('submit', async (event) => {
    event.preventDefault();
    const form = event.target;
    try {
      const fresh = await ask(form.action, { method: 'POST', body: new URLSearchParams(new FormData(form)) });
      replace(['check'], fresh);
      check.hidden = false;
      (check.querySelector('[aria-invalid=true]') ?? check.querySelector('.answer'))?.focus();
    } catch (error) {
      const answer = check.querySelector('.answer');
      answer.hidden = false;
      answer.textContent = error instanceof TypeError || error.name === 'TimeoutError'
        ? 'The sidecar does not answer. Do not send.' : error.message;
    }
  });
})();
