// Numbers as the library shows them: the same digits as Python's formats of report/numbers.py.

const TIE = /^50*$/;

// Python rounds exact halves to the even digit, JavaScript to the larger number.
function halfEven(rounded, exact, kept) {
  const tail = exact.replace(/e.*/, "").replace(".", "").slice(kept);
  return TIE.test(tail) && /[13579]$/.test(rounded.replace(/e.*/, ""));
}

// f"{x:.{digits}g}"
function general(x, digits) {
  if (x === 0) return "0";
  if (x < 0) return "-" + general(-x, digits);
  const rounded = x.toExponential(digits - 1);
  const exact = x.toExponential(80);
  const end = rounded.indexOf("e");
  const mantissa = (halfEven(rounded, exact, digits) ? exact : rounded).slice(0, end);
  const exponent = Number(rounded.slice(end + 1));
  const strip = (t) => (t.includes(".") ? t.replace(/\.?0+$/, "") : t);
  if (exponent < -4 || exponent >= digits) {
    const size = String(Math.abs(exponent)).padStart(2, "0");
    return strip(mantissa) + (exponent < 0 ? "e-" : "e+") + size;
  }
  const figures = mantissa.replace(".", "");
  if (exponent < 0) return strip("0." + "0".repeat(-exponent - 1) + figures);
  const whole = figures.slice(0, exponent + 1);
  const rest = figures.slice(exponent + 1);
  return rest ? strip(whole + "." + rest) : whole;
}

// f"{x:.{digits}f}" of a number that is not negative
function fixed(x, digits) {
  const text = x.toFixed(digits);
  const exact = x.toFixed(80);
  const kept = text.replace(".", "").length;
  return halfEven(text, exact, kept) ? exact.slice(0, text.length) : text;
}

function error(x) {
  return x === null || Number.isNaN(x) ? "-" : general(x, 4);
}

function thousands(count) {
  return String(count).replace(/\B(?=(\d{3})+$)/g, ",");
}

function shortCount(count) {
  for (const [unit, size, from] of [["G", 1e9, 1e9], ["M", 1e6, 1e6], ["k", 1e3, 1e4]]) {
    if (count >= from) return general(count / size, 3) + unit;
  }
  return String(count);
}

function byteSize(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return general(count / size, 3) + " " + unit;
  }
  return count + " bytes";
}

function times(after, before) {
  return before ? fixed(after / before, 2) + "x" : "-";
}
