// Plays the film where the session left off, and tells the server every second how much of it was played.

const film = document.getElementById("film");
const TELL_MS = 1000;
let played_s = 0; // not told yet
let before_s = null; // place in the film when we looked last
let waiting_ms = 0; // since when the picture stands for want of film; 0: it does not
let waited_ms = 0;
let begun = false; // it stands where the session left off; until then its own place says nothing

function say(id, text) {
  const node = document.getElementById(id);
  if (node.textContent !== text) node.textContent = text;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function look() {
  if (!film.paused && !film.seeking && before_s !== null) {
    const step_s = film.currentTime - before_s;
    if (step_s > 0 && step_s < 2) played_s += step_s;
  }
  before_s = film.seeking ? null : film.currentTime;
}

async function tell() {
  look();
  const seconds = Math.min(played_s, 5);
  const position_s = begun ? film.currentTime : Number(film.dataset.position);
  try {
    const answer = await fetch("/api/watched", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ seconds, position_s }) });
    if (answer.status === 401) {
      say("word", "The session is over: log in again.");
      return;
    }
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const session = await answer.json();
    played_s -= seconds;
    say("watched", clock(session.watched_s));
    say("age", clock(session.session_age_s));
    say("word", "");
  } catch (problem) {
    say("word", `Not saved yet: ${problem.message}`);
  }
  setTimeout(tell, TELL_MS);
}

film.addEventListener("waiting", () => {
  waiting_ms ||= performance.now();
});
film.addEventListener("playing", () => {
  if (waiting_ms) waited_ms += performance.now() - waiting_ms;
  waiting_ms = 0;
  say("waited", `${(waited_ms / 1000).toFixed(1)} s`);
});
film.addEventListener("timeupdate", look);
function begin() {
  if (begun) return;
  begun = true;
  const position_s = Number(film.dataset.position);
  if (position_s > 0 && position_s < film.duration - 1) film.currentTime = position_s;
  // with sound if the browser lets us, else without
  film.play().catch(() => {
    film.muted = true;
    film.play().catch(() => say("word", "Press play to begin."));
  });
}
film.addEventListener("loadedmetadata", begin);
if (film.readyState >= HTMLMediaElement.HAVE_METADATA) begin(); // the browser had it already, and told nobody
tell();
