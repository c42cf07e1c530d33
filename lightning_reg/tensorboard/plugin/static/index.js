export async function render() {
  const answer = await fetch("./runs");
  const { runs } = await answer.json();
  const list = document.createElement("ul");
  for (const { name, metrics } of runs) {
    const item = document.createElement("li");
    item.textContent = `${name}: ${metrics.join(", ")}`;
    list.append(item);
  }
  document.body.append(list);
}
