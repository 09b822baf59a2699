// The commands that write what is shown, and the tables that are wider than the screen.

// A line is broken before an option, and never after a hyphen.
function sayCommand(id, after, ...question) {
  const { before } = record.command;
  const words = [before, ...question, after].filter((part) => part).join(" ").split(/ (?=-)/);
  byId(id).replaceChildren(...words.flatMap((word, i) => [i ? " " : "", element("span", {}, word)]));
  say(id + "-copied", "");
}

const several = () => record.sources.length > 1;
const recommendedWords = byId("command-says").textContent;

// For a budget; null for what is recommended.
function budgetCommand(budget) {
  const { asked, limits, after, rest } = record.command;
  byId("recommended").hidden = budget === null;
  if (budget === null) {
    say("command-says", recommendedWords);
    sayCommand("command", after, asked, limits);
  } else if (inBytes() && budget.in_bits) {
    say("command-says", "To write it in bits at this error of all updates:");
    sayCommand("command", rest, `--format auto --total-error ${error(budget.relative_error)} --coding=auto`, limits);
  } else {
    say("command-says", several() ? "To put these adapters into a bank of at most so many parameters:" : "To write the best of so many parameters:");
    sayCommand("command", rest, `--format auto --max-params ${budget.params}`, limits);
  }
}

// For a pair of ranks, which a conversion gives to every group; none where there is nothing to keep,
// and none where a bank would stack otherwise.
function pairCommand(pair) {
  const { stack, rest } = record.command;
  const there = pair && pair.r1 > 0 && pair.r2 > 0 && stack !== null;
  byId("pair-command").hidden = !there;
  if (!there) return;
  const which = record.groups.length > 1 ? "these ranks for every group" : "these ranks";
  say("pair-says", `To write LoTR with ${which}${several() ? ", as a bank" : ""}:`);
  sayCommand("pair-line", rest, `--format lotr --rank ${pair.r1},${pair.r2}`, stack);
}

// Selects a line as well, so that it can be copied by hand where the browser refuses.
async function copy(id) {
  getSelection().selectAllChildren(byId(id));
  let done = true;
  try {
    await navigator.clipboard.writeText(byId(id).textContent);
  } catch {
    done = document.execCommand("copy");
  }
  say(id + "-copied", done ? "Copied." : "The line is selected: copy it with Ctrl+C.");
}

// Marks frames whose table is wider, and those of which more lies to the right.
function watchFrames() {
  const mark = (frame) => {
    const beyond = frame.scrollWidth - frame.clientWidth;
    frame.classList.toggle("scrolls", beyond > 1);
    frame.classList.toggle("more", frame.scrollLeft < beyond - 1);
  };
  const watcher = new ResizeObserver((changes) => {
    for (const { target } of changes) mark(target.closest(".frame"));
  });
  for (const frame of document.querySelectorAll(".frame")) {
    watcher.observe(frame);
    watcher.observe(frame.querySelector("table"));
    frame.addEventListener("scroll", () => mark(frame), { passive: true });
  }
}
