package level

import (
	"math"
	"reflect"
	"testing"

	"github.com/stretchr/testify/require"
)

type leaf struct {
	Old  int
	New  string  `since:"5"`
	Note *string `since:"7,ignored"`
}

type base struct {
	Based bool `since:"4"`
}

type tree struct {
	base
	Leaf   leaf
	Next   *tree
	Leaves []leaf
	Named  map[string]*leaf
	All    *leaf `since:"3"`
	Wrong  bool  `since:"next"`
	hidden leaf
}

func TestOf(t *testing.T) {
	note, lazy := "", leaf{New: "x"}
	for name, c := range map[string]struct {
		v          any
		of, needed int
	}{
		"nothing":                {nil, Oldest, Oldest},
		"a nil pointer":          {(*tree)(nil), Oldest, Oldest},
		"what everybody knows":   {tree{Leaf: leaf{Old: 1}}, Oldest, Oldest},
		"a field in a field":     {tree{Leaf: lazy}, 5, 5},
		"behind pointers":        {&tree{Next: &tree{Next: &tree{Leaf: lazy}}}, 5, 5},
		"in a list":              {tree{Leaves: []leaf{{}, lazy}}, 5, 5},
		"in a map":               {tree{Named: map[string]*leaf{"a": {}, "b": &lazy}}, 5, 5},
		"in what is embedded":    {tree{base: base{Based: true}}, 4, 4},
		"new, with nothing new":  {tree{All: &leaf{Old: 1}}, 3, 3},
		"new, with what is more": {tree{All: &lazy}, 5, 5},
		"the highest counts":     {tree{All: &lazy, base: base{Based: true}}, 5, 5},
		"what may be ignored":    {tree{Leaf: leaf{Note: &note}}, 7, Oldest},
		"ignored, beside others": {tree{Leaf: leaf{Note: &note, New: "x"}}, 7, 5},
		"a tag that is none":     {tree{Wrong: true}, math.MaxInt, math.MaxInt},
		"what is not exported":   {tree{hidden: lazy}, Oldest, Oldest},
		"no struct":              {7, Oldest, Oldest},
		"a list of structs":      {[]leaf{lazy}, 5, 5},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.of, Of(c.v))
			require.Equal(t, c.needed, Needed(c.v))
		})
	}
	require.Same(t, nothing, planOf(reflect.TypeFor[struct{ A []map[string]*int }]()), "looking at what everybody knows costs nothing")
}

func TestSaid(t *testing.T) {
	require.Equal(t, Unsaid, Said(0))
	require.Equal(t, Unsaid, Said(-1))
	require.Equal(t, 9, Said(9))
	require.Equal(t, 1, Said(1))
}
