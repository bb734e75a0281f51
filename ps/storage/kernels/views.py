"""Views without references or checks, and a float32 as its bits.

numba counts a reference, atomically, wherever an array passes into a helper. `borrow` gives the same array without a
count: a kernel borrows its arguments first, which made the search through the index ten times faster.

`part` makes a view whose length the compiler knows when it is a constant, so that loops over it are unrolled and
vectorised. It is not counted as a reference and checks no bounds: use it only while its array lives, inside it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array


@intrinsic
def part(typingctx, array, start, length):
    """The view array.ravel()[start : start + length] of a C-contiguous array."""

    def codegen(context, builder, signature, args):
        source_type, start_type, length_type = signature.args
        source = context.make_array(source_type)(context, builder, args[0])
        view = context.make_array(signature.return_type)(context, builder)
        start = context.cast(builder, args[1], start_type, types.intp)
        length = context.cast(builder, args[2], length_type, types.intp)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(source_type.dtype)))
        populate_array(
            view,
            data=builder.gep(source.data, [start]),
            shape=cgutils.pack_array(builder, [length]),
            strides=cgutils.pack_array(builder, [itemsize]),
            itemsize=itemsize,
            meminfo=None,
        )
        return view._getvalue()

    return array.copy(ndim=1, layout="C")(array, start, length), codegen


@intrinsic
def bytes_of(typingctx, array, start, length):
    """As `part`, in bytes: int8 [length], from a byte of a C-contiguous array on."""

    def codegen(context, builder, signature, args):
        source_type, start_type, length_type = signature.args
        source = context.make_array(source_type)(context, builder, args[0])
        view = context.make_array(signature.return_type)(context, builder)
        start = context.cast(builder, args[1], start_type, types.intp)
        length = context.cast(builder, args[2], length_type, types.intp)
        one = context.get_constant(types.intp, 1)
        populate_array(
            view,
            data=builder.gep(builder.bitcast(source.data, ir.IntType(8).as_pointer()), [start]),
            shape=cgutils.pack_array(builder, [length]),
            strides=cgutils.pack_array(builder, [one]),
            itemsize=one,
            meminfo=None,
        )
        return view._getvalue()

    return array.copy(dtype=types.int8, ndim=1, layout="C")(array, start, length), codegen


@intrinsic
def borrow(typingctx, array):
    """The same array, not counted as a reference. Never of an array made inside the kernel: that one would be freed."""

    def codegen(context, builder, signature, args):
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), codegen


@intrinsic
def bits_of(typingctx, value):
    """uint32: the bits of a float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def from_bits(typingctx, bits):
    """float32: the value with these bits (any integer; its low 32 bits count)."""

    def codegen(context, builder, signature, args):
        narrow = context.cast(builder, args[0], signature.args[0], types.uint32)
        return builder.bitcast(narrow, ir.FloatType())

    return types.float32(bits), codegen


@intrinsic
def compare_group(typingctx, words, start, shift, tag):
    """Of 16 consecutive uint32: bit i is set where words[start + i] >> shift equals tag, bit 16 + i where it is 0."""

    def codegen(context, builder, signature, args):
        words_type, start_type, shift_type, tag_type = signature.args
        data = context.make_array(words_type)(context, builder, args[0]).data
        i32 = ir.IntType(32)
        vector = ir.VectorType(i32, 16)

        def splat(value):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, i32(0))
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * 16))

        def mask(condition):
            return builder.zext(builder.bitcast(condition, ir.IntType(16)), i32)

        first = builder.gep(data, [context.cast(builder, args[1], start_type, types.intp)])
        group = builder.load(builder.bitcast(first, vector.as_pointer()), align=4)
        tags = builder.lshr(group, splat(context.cast(builder, args[2], shift_type, types.uint32)))
        hits = builder.icmp_unsigned("==", tags, splat(context.cast(builder, args[3], tag_type, types.uint32)))
        empty = builder.icmp_unsigned("==", group, ir.Constant(vector, [0] * 16))
        return builder.or_(mask(hits), builder.shl(mask(empty), i32(16)))

    return types.uint32(words, start, shift, tag), codegen


@intrinsic
def stream(typingctx, words, at, value):
    """words[at] = value, a uint32, past the caches: for memory that is written now and hardly ever read."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.gep(data, [context.cast(builder, args[1], signature.args[1], types.intp)])
        store = builder.store(args[2], place, align=4)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(words, at, types.uint32), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """int64: the number of the lowest set bit of a uint32 that is not 0."""

    def codegen(context, builder, signature, args):
        return builder.zext(builder.cttz(args[0], ir.IntType(1)(1)), ir.IntType(64))

    return types.int64(types.uint32), codegen
