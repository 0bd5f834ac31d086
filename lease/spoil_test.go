package lease_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
)

// hostile are values that nobody honest would give, at one place or another.
var hostile = []any{
	nil, true, "", "ann", "urgent", "rendered", "done", "x.png", "/etc/passwd", strings.Repeat("é", 3000), "9999-12-31T23:59:59-01:00", "0000-01-01T00:00:00+01:00",
	-1, 0, 1, 2, 7, 1<<31 - 1, -1 << 31, int64(1) << 62, 1e308, 5e-324, []any{}, map[string]any{},
}

// spoil changes one value somewhere in a JSON document, as pick, which answers with
// a number below the one it is given, chooses. What is no JSON comes back as it is.
func spoil(text []byte, pick func(int) int) []byte {
	var doc any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&doc) != nil {
		return text
	}
	changed, err := json.Marshal(spoilt(doc, pick))
	if err != nil {
		return text
	}
	return changed
}

func spoilt(v any, pick func(int) int) any {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || pick(12) == 0 {
			break
		}
		k := slices.Sorted(maps.Keys(v))[pick(len(v))]
		if pick(12) == 0 {
			delete(v, k)
		} else {
			v[k] = spoilt(v[k], pick)
		}
		return v
	case []any:
		if len(v) == 0 {
			break
		}
		i := pick(len(v))
		switch pick(12) {
		case 0:
			return slices.Delete(v, i, i+1)
		case 1:
			return append(v, v[i])
		case 2:
			k := pick(len(v))
			v[i], v[k] = v[k], v[i]
			return v
		case 3:
		default:
			v[i] = spoilt(v[i], pick)
			return v
		}
	}
	return hostile[pick(len(hostile))]
}
