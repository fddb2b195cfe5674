// An editor for gpt2.py: CodeMirror once it has loaded, a plain text area until then and where it cannot be loaded.

import { loadEditor } from "./engine.mjs";
import { make } from "./views.mjs";

// [first, last] line of a function in the source, counted from 1, or null.
export function linesOf(source, name) {
  const lines = source.split("\n"), first = lines.findIndex((line) => line.startsWith(`def ${name}(`));
  if (first < 0) return null;
  let last = first + 1;
  while (last < lines.length && (/^[\s)]/.test(lines[last]) || lines[last] === "")) last++;
  while (last > first + 1 && !lines[last - 1].trim()) last--;
  return [first + 1, last];
}

// The lines (from 1) of `text` that are not in `original`, by their longest common subsequence. Where lines were
// deleted, the following line counts as changed.
export function changedLines(original, text) {
  const a = original.split("\n"), b = text.split("\n"), changed = new Set();
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const n = a.length - start - end, m = b.length - start - end;
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  const same = (i, j) => a[start + i] === b[start + j];
  for (let i = n - 1; i >= 0; i--)
    for (let j = m - 1; j >= 0; j--)
      best[i][j] = same(i, j) ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const kept = (i, j) => i < n && j < m && same(i, j);
  for (let i = 0, j = 0; i < n || j < m;) {
    const before = i, from = j;
    while ((i < n || j < m) && !kept(i, j))
      if (j < m && (i === n || best[i][j + 1] >= best[i + 1][j])) changed.add(start + ++j);
      else i++;
    if (i > before && j === from) changed.add(Math.min(start + j + 1, b.length));
    while (kept(i, j)) i++, j++;
  }
  return changed;
}

// The smallest replacement that turns `old` into `text`: elsewhere the cursor and the undo history stay intact.
function replacement(old, text) {
  let from = 0, end = 0;
  while (from < Math.min(old.length, text.length) && old[from] === text[from]) from++;
  while (end < Math.min(old.length, text.length) - from && old.at(-1 - end) === text.at(-1 - end)) end++;
  return { from, to: old.length - end, insert: text.slice(from, text.length - end) };
}

// An editor in `parent`: { text, set(text), mark({ part, changed, error }), reveal(line), select(from, to), relabel }.
// onChange(text) is called on each change; onRun on Ctrl-Enter.
export class Editor {
  constructor(parent, { label, onChange, onRun }) {
    Object.assign(this, { parent, onChange, onRun, label, marks: { part: null, changed: new Set(), error: null } });
    this.area = make("textarea", parent, undefined, { spellcheck: false, wrap: "off", autocomplete: "off" });
    this.area.setAttribute("autocapitalize", "off");
    this.area.setAttribute("aria-label", label);
    this.area.oninput = () => onChange(this.area.value);
    this.area.onkeydown = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), onRun();
    };
  }

  get text() {
    return this.view ? this.view.state.doc.toString() : this.area.value;
  }

  set(text) {
    if (text === this.text) return;
    if (this.view) this.view.dispatch({ changes: replacement(this.text, text) });
    else this.area.value = text, this.onChange(text);
  }

  mark(marks) {
    Object.assign(this.marks, marks);
    this.view?.dispatch({ effects: this.redraw.of(null) });
  }

  reveal(first, last = first) {  // scrolls the editor, not the page
    if (!this.view) return;
    const { scrollDOM } = this.view, top = (line) => this.block(line).top, height = scrollDOM.clientHeight;
    const from = top(first), to = this.block(last).bottom;
    if (from < scrollDOM.scrollTop || to > scrollDOM.scrollTop + height)
      scrollDOM.scrollTo({ top: Math.max(0, to - from > height * 0.8 ? from - 20 : (from + to - height) / 2), left: 0 });
  }

  block(line) {
    const { doc } = this.view.state;
    return this.view.lineBlockAt(doc.line(Math.min(Math.max(1, line), doc.lines)).from);
  }

  select(from, to) {
    if (this.view) {
      this.view.dispatch({ selection: { anchor: from, head: to }, scrollIntoView: true });
      this.view.focus();
    } else this.area.focus(), this.area.setSelectionRange(from, to);
  }

  async upgrade(lib) {
    const modules = await loadEditor(lib);
    const { EditorState, StateEffect, StateField } = modules.state;
    const { Decoration, EditorView, WidgetType, drawSelection, highlightActiveLine, highlightSpecialChars, keymap,
      lineNumbers } = modules.view;
    const { HighlightStyle, bracketMatching, indentOnInput, indentUnit, syntaxHighlighting } = modules.language;
    const { defaultKeymap, history, historyKeymap, indentLess, indentMore } = modules.commands;
    const { tags } = modules.highlight;

    class Message extends WidgetType {
      constructor(text) { super(), this.text = text; }
      eq(other) { return other.text === this.text; }
      toDOM() { return make("div", null, this.text, { className: "cm-message" }); }
    }
    const decorate = (doc) => {
      const { part, changed, error } = this.marks, found = [];
      for (let number = 1; number <= doc.lines; number++) {
        const wrong = error?.line === number, { from, to } = doc.line(number);
        const names = [part && number >= part[0] && number <= part[1] && "cm-part", changed.has(number) && "cm-changed",
          wrong && "cm-wrong"].filter(Boolean).join(" ");
        if (names) found.push(Decoration.line({ class: names }).range(from));
        if (wrong) found.push(Decoration.widget({ widget: new Message(error.message), block: true, side: 1 }).range(to));
      }
      return Decoration.set(found);
    };
    this.redraw = StateEffect.define();
    const marked = StateField.define({
      create: ({ doc }) => decorate(doc),
      update: (marks, { docChanged, effects, changes, state }) =>
        effects.some((effect) => effect.is(this.redraw)) ? decorate(state.doc) : docChanged ? marks.map(changes) : marks,
      provide: (field) => EditorView.decorations.from(field),
    });
    const colors = HighlightStyle.define([
      { tag: tags.keyword, class: "tok-keyword" }, { tag: tags.comment, class: "tok-comment" },
      { tag: tags.string, class: "tok-string" }, { tag: [tags.number, tags.bool, tags.null], class: "tok-number" },
      { tag: tags.function(tags.definition(tags.variableName)), class: "tok-def" },
      { tag: tags.operator, class: "tok-operator" },
    ]);
    const focused = this.area === document.activeElement;
    const { selectionStart, selectionEnd } = this.area;
    this.view = new EditorView({
      parent: this.parent,
      state: EditorState.create({
        doc: this.area.value,
        selection: { anchor: selectionStart, head: selectionEnd },
        extensions: [
          lineNumbers(), history(), drawSelection(), highlightActiveLine(), highlightSpecialChars(), bracketMatching(),
          indentOnInput(), indentUnit.of("    "), modules.python.python(), syntaxHighlighting(colors), marked,
          EditorView.contentAttributes.of({ "aria-label": this.label, spellcheck: "false" }),
          EditorView.updateListener.of((update) => update.docChanged && this.onChange(this.text)),
          keymap.of([
            { key: "Mod-Enter", run: () => (this.onRun(), true) },
            { key: "Tab", run: indentMore, shift: indentLess },  // CodeMirror lets Escape, then Tab leave the editor
            ...defaultKeymap.filter(({ key }) => key !== "Mod-Enter"), ...historyKeymap,
          ]),
        ],
      }),
    });
    this.area.remove();
    if (focused) this.view.focus();
  }

  relabel(label) {
    this.label = label;
    (this.view?.contentDOM ?? this.area).setAttribute("aria-label", label);
  }
}
