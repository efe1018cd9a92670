// Curves have no x of their own, as that of all metrics is the same. In the smoothed
// mean a value weighs smooth ** age. The address keeps the choice over a reload.
const form = document.getElementById("controls");
const smoothed = (values, share, sum = 0, weight = 0) => values.map(value => {
  if (value === null) return null;
  sum = share * sum + value, weight = share * weight + 1;
  return sum / weight;
});
globalThis.adapt = figure => {
  const axis = form?.axis.value, share = Number(form?.smooth.value);
  for (const trace of figure.data.filter(trace => trace.meta?.axes)) {
    trace.x = axes[trace.meta.axes][axis];
    if (trace.meta.smooth) trace.y = smoothed(trace.y, share);
    const title = form.querySelector("input:checked").parentNode.innerText;
    figure.layout.xaxis.title = {text: title};
  }
  return figure;
};
if (form) {
  const [axis, share] = location.hash.slice(1).split(",");
  if (axis) form.axis.value = axis, form.smooth.value = share;
  form.addEventListener("input", () => {
    history.replaceState(null, "", `#${form.axis.value},${form.smooth.value}`);
    draw();
  });
}
if (live) setTimeout(() => location.reload(), 10000);
