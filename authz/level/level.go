// Package level says which of the farm's machines can read what, so that machines of two
// versions of vizpeer can work together while a farm is updated, one by one.
//
// A level is a number: each release that writes something which the one before cannot
// read counts it up by one. A machine says the highest that it knows, in its ad and when
// it opens its work stream. A farm has a level too, which is replicated with its log: the
// highest that all of its coordinators, voters and standbys, were known to read at once.
// The leader raises it by a command as soon as that is so, and nothing lowers it.
//
// From that follows who may be told what:
//
//   - The log takes a command only if the farm's level is at least that of the command:
//     until then the leader refuses it and names the machine to update. A coordinator
//     that meets something in the log or in a snapshot that it does not know stops before
//     it applies it: skipping it would make its queue differ from the others'. And a
//     machine that does not know the farm's level is no standby.
//   - A message goes over a work stream only if the other side knows it.
//   - A task goes only to a machine that knows all that its job asks for.
//
// # How to add a command, a message or a field
//
// Give the field a tag with the level of the next release, which [Known] must be:
//
//	Freeze *Freeze `json:"freeze,omitempty" since:"4"`
//
// That is all for a command of the queue or the roster, for a field of one that exists,
// for a new kind of [coord.Up] or [coord.Down], and for a setting of a job that an older
// worker would render wrong. What says so is found by [Of], wherever in a command it is.
// The field must be left out of the JSON where it is zero, and its zero must mean what
// there was before.
//
// A field of a message or a job that an older machine may leave out without any harm, such
// as one for people to read, is tagged `since:"4,ignored"`. There is no such thing in the
// log.
//
// What a command that exists does must not change: two versions would make two queues of
// one log. Have the leader say in a field of the command, which is new, that it is to be
// done in the new way. State that a command leaves behind goes into the snapshot as fields
// that are left out where they are zero; so a farm whose level is lower never has them.
//
// A field is never removed, renamed, or given another type while peers of a level that
// has it may be about. Tests of packages coord, lease, authz and peer hold all of this
// against what each level wrote when it was released: see testdata/level-N there, and
// docs/upgrade.md for how to record that and for what mixes with what.
package level

import (
	"math"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

const (
	// Known is the highest level that this program knows.
	Known = 3
	// Unsaid is that of a machine that does not say one: they say it since level 3.
	Unsaid = 2
	// Oldest is what everybody knows.
	Oldest = 1
)

// Said is what a machine knows that says it knows n.
func Said(n int) int {
	if n <= 0 {
		return Unsaid
	}
	return n
}

// Of is the lowest level that knows all of v, a struct or a pointer to one: the highest
// of the fields that are set in it, and in all that it holds.
func Of(v any) int { return find(v, true) }

// Needed is Of without the fields that may be ignored.
func Needed(v any) int { return find(v, false) }

func find(v any, all bool) int {
	value := reflect.ValueOf(v)
	if !value.IsValid() {
		return Oldest
	}
	return max(Oldest, planOf(value.Type()).find(value, all))
}

// plan is where in values of one type something may be that not every level knows.
type plan struct {
	fields []planned // of a struct
	inside *plan     // of what a pointer, list or map holds
}

type planned struct {
	index   int
	since   int // 0: the field itself is old
	ignored bool
	inside  *plan
}

// nothing is the plan of a type that every level knows.
var nothing = new(plan)

var plans sync.Map // of reflect.Type: *plan

func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p := build(t, make(map[reflect.Type]*plan))
	plans.Store(t, p)
	return p
}

// build makes the plan of t. begun are those of the types that t is in: one that holds
// itself ends there.
func build(t reflect.Type, begun map[reflect.Type]*plan) *plan {
	if p := begun[t]; p != nil {
		return p
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		p := new(plan)
		begun[t] = p
		defer delete(begun, t)
		if p.inside = build(t.Elem(), begun); p.inside == nothing {
			return nothing
		}
		return p
	case reflect.Struct:
		p := new(plan)
		begun[t] = p
		defer delete(begun, t)
		for i := range t.NumField() {
			f := t.Field(i)
			if !f.IsExported() && !f.Anonymous {
				continue
			}
			at := planned{index: i, inside: build(f.Type, begun)}
			if tag, is := f.Tag.Lookup("since"); is {
				number, option, _ := strings.Cut(tag, ",")
				n, err := strconv.Atoi(number)
				if err != nil {
					n = math.MaxInt // nobody knows it
				}
				at.since, at.ignored = n, option == "ignored"
			}
			if at.since > 0 || at.inside != nothing {
				p.fields = append(p.fields, at)
			}
		}
		if len(p.fields) == 0 {
			return nothing
		}
		return p
	}
	return nothing
}

func (p *plan) find(v reflect.Value, all bool) (n int) {
	if p == nothing {
		return 0
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			n = p.inside.find(v.Elem(), all)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			n = max(n, p.inside.find(v.Index(i), all))
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			n = max(n, p.inside.find(it.Value(), all))
		}
	case reflect.Struct:
		for _, f := range p.fields {
			field := v.Field(f.index)
			if field.IsZero() {
				continue
			}
			if all || !f.ignored {
				n = max(n, f.since, f.inside.find(field, all))
			}
		}
	}
	return n
}
